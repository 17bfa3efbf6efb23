"""Adversarial neuron pruning (Wu & Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021).

Neurons are the channels of every norm layer with a scale, LayerNorms of the residual stream among them, as in
BackdoorBench.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from rnp_mlflow.core.evaluate import accuracy, predict
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.seeds import generator
from rnp_mlflow.data.preprocess import Preprocess

ALPHA, EPSILON, LR, MOMENTUM = 0.2, 0.4, 0.2, 0.9  # of the paper
STEPS, BATCH_SIZE = 500, 64
THRESHOLDS = [k / 20 for k in range(1, 20)]
ACC_RATIO = 0.95  # of accuracy on the clean images, that the threshold has to leave: ours; the paper takes 0.2
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)

Values = dict[str, Tensor]


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the norm layers with a scale and a shift, one per channel."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, NORMS) and module.weight is not None and module.weight.ndim == 1
    }


def perturbed(layers: Mapping[str, nn.Module], mask: Values, on_scale: Values, on_shift: Values) -> Values:
    """Return the parameters (m + δ) · γ and (1 + ξ) · β of each layer (equation 4 of the paper, on norms)."""
    found: Values = {}
    for name, layer in layers.items():
        scale, shift = layer.get_parameter("weight"), layer.get_parameter("bias")
        found |= {f"{name}.weight": (mask[name] + on_scale[name]) * scale, f"{name}.bias": (1 + on_shift[name]) * shift}
    return found


def learn_mask(model: nn.Module, clean: LabeledImages, transform: Preprocess, seed: int) -> Values:
    """Return layer → mask (channels,): min over m of α·L(m) + (1 − α)·max over |δ|, |ξ| ≤ ε of L(m + δ) (equation 5).

    Each step perturbs by one sign step of size ε from a random start, then moves the mask by SGD.
    """
    working = copy.deepcopy(model).requires_grad_(False).eval()
    layers, numbers = norms_of(working), generator(seed, "anp")
    mask = {name: torch.ones_like(layer.get_parameter("weight")).requires_grad_() for name, layer in layers.items()}
    optimizer = torch.optim.SGD(mask.values(), LR, MOMENTUM)

    def loss(values: Values, noise: Sequence[Values], inputs: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(functional_call(working, perturbed(layers, values, *noise), (inputs,)), labels)

    zeros = {name: torch.zeros_like(values) for name, values in mask.items()}
    for _ in range(STEPS):
        index = torch.randint(len(clean.labels), (min(BATCH_SIZE, len(clean.labels)),), generator=numbers)
        inputs, labels = transform(clean.images[index], numbers), clean.labels[index]
        starts = [
            {
                name: ((2 * torch.rand(len(v), generator=numbers) - 1) * EPSILON).requires_grad_()
                for name, v in mask.items()
            }
            for _ in range(2)
        ]
        fixed = {name: values.detach() for name, values in mask.items()}
        leaves = [values for start in starts for values in start.values()]
        grads = torch.autograd.grad(loss(fixed, starts, inputs, labels), leaves)
        moved = [(x + EPSILON * g.sign()).detach().clamp(-EPSILON, EPSILON) for x, g in zip(leaves, grads, strict=True)]
        worst = [dict(zip(mask, part, strict=True)) for part in (moved[: len(mask)], moved[len(mask) :])]
        optimizer.zero_grad()
        natural, robust = (loss(mask, noise, inputs, labels) for noise in ((zeros, zeros), worst))
        (ALPHA * natural + (1 - ALPHA) * robust).backward()
        optimizer.step()
        with torch.no_grad():
            for values in mask.values():
                values.clamp_(0, 1)
    return {name: values.detach() for name, values in mask.items()}


def purify(model: nn.Module, clean: LabeledImages, transform: Preprocess, seed: int) -> nn.Module | None:
    """Prune at the largest threshold that leaves `ACC_RATIO` of accuracy; None if there is no norm layer."""
    if not norms_of(model):
        return None
    mask = learn_mask(model, clean, transform, seed)
    enough = ACC_RATIO * accuracy(predict(model, clean.images, transform), clean.labels)
    best = copy.deepcopy(model).eval()
    for threshold in THRESHOLDS:
        pruned = copy.deepcopy(model).eval()
        with torch.no_grad():
            for name, layer in norms_of(pruned).items():
                layer.get_parameter("weight")[mask[name] <= threshold] = 0
        if accuracy(predict(pruned, clean.images, transform), clean.labels) < enough:
            break
        best = pruned
    return best
