"""Step 2: a mask that brings clean accuracy back to the unlearned model (RNP, equation 3).

All weights are frozen; one mask value per neuron starts at 1, scales γ alone, and is kept in [0, 1].
What recovery does not need stays low: the backdoor's neurons.
"""

import copy
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from rnp_mlflow.core.batches import EpochRecord, OnEpoch, Tally, Watch, batches
from rnp_mlflow.core.descent import Descent
from rnp_mlflow.core.evaluate import Transform
from rnp_mlflow.core.neurons import Mask, masked_scales, ones_mask
from rnp_mlflow.core.precision import forwards, frozen
from rnp_mlflow.core.proxy import Proxy


@dataclass(frozen=True)
class Recovered:
    """The mask, layer → (channels,) float32 on the CPU, and the history of the epochs."""

    mask: Mask
    history: list[EpochRecord]


def recover(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    transform: Transform,
    generator: Generator,
    *,
    alpha: float = 0.2,
    lr: float = 0.2,
    epochs: int = 10,
    batch_size: int = 32,
    momentum: float = 0.9,
    proxy: Proxy | None = None,
    proxy_share: float = 0.5,
    suspect: nn.Module | None = None,
    suspect_steps: int = 2,
    suspect_weight: float = 2.0,
    averaging: str = "steps",
    precision: str = "fp32",
    watch: Watch | None = None,
    on_epoch: OnEpoch = lambda record: None,
) -> Recovered:
    """Minimise alpha × cross-entropy over the mask of an unlearned model (left as it was).

    images: uint8 (N, C, H, W), labels int64 (N,), both on the model's device. generator: a CPU one, the source of
    batch order and augmentation. BatchNorm runs in train mode, on a copy. The mask is clamped to [0, 1] after every
    SGD step. proxy: put on `proxy_share` of the images, which keep their label, so that the neurons which it needs are
    not recovered. suspect: the model before unlearning. With it and a proxy, each step on the unlearned model is
    followed by `suspect_steps` on this one, their loss `suspect_weight` times as large: the same mask has to bring back
    the one's accuracy and to take the proxy's effect from the other. averaging: 'steps' gives the mean of the mask over
    all steps, which ranks neurons by how soon and how surely they fall (many end at 0 alike); 'none' the last mask, as
    the reference. precision: as `core.precision.forwards` takes it. watch: scores the unlearned model under the mask
    after an epoch.

    Raises:
        ModelError: the model has no BatchNorm layer with a scale.
    """
    turns = [(model, alpha)]
    if suspect and proxy:
        turns += suspect_steps * [(suspect, alpha * suspect_weight)]
    mask = {name: values.requires_grad_() for name, values in ones_mask(model).items()}
    descent = Descent(mask.values(), lr, momentum)
    history: list[EpochRecord] = []
    total, steps = {name: torch.zeros_like(values) for name, values in mask.items()}, 0
    with ExitStack() as stack:
        working = {part: stack.enter_context(frozen(part, precision)).train() for part in dict(turns)}
        forward = {part: stack.enter_context(forwards(copied, precision)) for part, copied in working.items()}
        for epoch in range(1, epochs + 1):
            tally = Tally(epoch)
            for index in batches(len(images), batch_size, generator):
                inputs = transform(images[index], generator)
                if proxy:
                    marked = torch.rand(len(index), generator=generator) < proxy_share
                    marked = marked.to(labels.device) & (labels[index] != proxy.target)
                    inputs = torch.where(marked[:, None, None, None], proxy(inputs), inputs)
                part, weight = turns[steps % len(turns)]
                logits = forward[part](inputs, masked_scales(working[part], mask))
                loss = cross_entropy(logits, labels[index])
                (weight * loss).backward()
                descent.step()
                with torch.no_grad():
                    for name, values in mask.items():
                        total[name] += values.clamp_(0, 1)
                steps += 1
                tally.add(loss, logits, labels[index])
            scores = watch(epoch, recovered(model, working[model], mask)) if watch else None
            history.append(tally.record(scores))
            on_epoch(history[-1])
    found = {name: values / steps for name, values in total.items()} if averaging == "steps" else mask
    return Recovered({name: values.detach().cpu() for name, values in found.items()}, history)


def recovered(model: nn.Module, working: nn.Module, mask: Mask) -> nn.Module:
    """A copy of `model` with the mask on its γ, and the statistics that `working`, its copy, has come to."""
    result = copy.deepcopy(model)
    result.load_state_dict(working.state_dict() | masked_scales(working, mask))
    return result
