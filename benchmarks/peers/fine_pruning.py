"""Fine-pruning (Liu, Dolan-Gavitt, Garg, "Fine-Pruning", RAID 2018): prune dormant neurons, then fine-tune."""

import copy

import torch
from torch import Tensor, nn

from benchmarks.peers import finetuning
from rnp_mlflow.core.evaluate import accuracy, predict
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.data.preprocess import Preprocess

MOST_LOST = 0.1  # of accuracy on the clean images, by pruning (BackdoorBench's `acc_ratio`)
STEP = 0.02  # share of the neurons that are pruned at once


def last_linear(model: nn.Module) -> nn.Linear:
    """Return the classifier."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


@torch.no_grad()
def mean_inputs(model: nn.Module, layer: nn.Linear, inputs: Tensor) -> Tensor:
    """Return the mean absolute input of each of the layer's inputs (channels,)."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].abs().flatten(0, -2).mean(0)))
    model(inputs)
    handle.remove()
    return seen[-1]


def purify(model: nn.Module, clean: LabeledImages, transform: Preprocess, seed: int) -> nn.Module:
    """Prune inputs of the classifier, the least active on clean images first, while accuracy lasts; then fine-tune.

    The inputs of the last linear layer are the outputs of the last block in every architecture, as BackdoorBench takes
    them for transformers. Pruned columns are not held at zero while fine-tuning, as in BackdoorBench.
    """
    pruned = copy.deepcopy(model).eval()
    layer, inputs = last_linear(pruned), transform(clean.images, None)
    order = mean_inputs(pruned, layer, inputs).argsort()
    lowest = accuracy(predict(pruned, clean.images, transform), clean.labels) - MOST_LOST
    weights = layer.weight.detach().clone()
    step = max(1, round(STEP * len(order)))
    for count in range(step, len(order), step):
        before = layer.weight.detach().clone()
        with torch.no_grad():
            layer.weight.copy_(weights)[:, order[:count]] = 0
        if accuracy(predict(pruned, clean.images, transform), clean.labels) < lowest:
            with torch.no_grad():
                layer.weight.copy_(before)
            break
    return finetuning.purify(pruned, clean, transform, seed)
