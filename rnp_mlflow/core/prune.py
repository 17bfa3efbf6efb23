"""Pruning by mask value, and the sweep that draws the curve.

A neuron is pruned by setting its γ to 0 in the *original* model; β stays (RNP, section 3.3).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

import torch
from torch import Tensor, nn

from rnp_mlflow.core.neurons import check_mask, flatten, light_copy, norm_layers
from rnp_mlflow.errors import ConfigError

R = TypeVar("R")


@dataclass(frozen=True)
class Cut:
    """One point of a sweep: where it lies, and how many neurons it prunes.

    at: the threshold (0 to 1) or the number asked for; None for the unpruned model.
    """

    at: float | int | None
    pruned: int


def multiples(maximum: float, step: float) -> list[float]:
    """0, step, 2·step, … up to and including `maximum`, each the float nearest to the exact decimal.

    Raises:
        ConfigError: step is not above 0, or maximum is below 0.
    """
    high, width = Decimal(str(maximum)), Decimal(str(step))
    if width <= 0 or high < 0:
        raise ConfigError(f"a sweep needs step > 0 and max ≥ 0, not step {step} and max {maximum}")
    return [float(width * k) for k in range(int(high / width) + 1)]


def ranking(mask: Mapping[str, Tensor]) -> Tensor:
    """Indices into the flattened mask, lowest value first; ties by layer, then channel. (neurons,)"""
    return torch.argsort(flatten(mask), stable=True)


def as_count(value: float, neurons: int) -> int:
    """A number of neurons: below 1 a share of all (rounded to nearest), from 1 on a whole count.

    Raises:
        ConfigError: negative, above the model's neurons, or neither a share nor a whole number.
    """
    if 0 <= value < 1:
        return round(Decimal(str(value)) * neurons)
    if value < 0 or value != int(value) or value > neurons:
        raise ConfigError(f"{value:g} is no number of neurons: give a share below 1 or a whole number up to {neurons}")
    return int(value)


def cut_at(mask: Mapping[str, Tensor], by: str, value: float) -> Cut:
    """The cut that `value` stands for: neurons with mask ≤ value, or exactly that number of them."""
    if by == "threshold":
        # Both as float32: a mask value written 0.3 is pruned at 0.3, one float32 above it is not.
        return Cut(value, int((flatten(mask) <= torch.tensor(value, dtype=torch.float32)).sum()))
    count = as_count(value, len(flatten(mask)))
    return Cut(count, count)


def cuts(mask: Mapping[str, Tensor], by: str, maximum: float, step: float) -> list[Cut]:
    """The unpruned model, then every multiple of `step` up to `maximum`.

    By threshold both are mask values. By number both are counts of neurons or, below 1, shares of
    all neurons; points that round to the same count are given once.

    Raises:
        ConfigError: `by` is neither 'threshold' nor 'number', or the bounds are out of range.
    """
    if by == "threshold":
        return [Cut(None, 0), *(cut_at(mask, by, t) for t in multiples(maximum, step))]
    if by != "number":
        raise ConfigError(f"prune by 'threshold' or 'number', not {by!r}")
    neurons = len(flatten(mask))
    high, width = as_count(maximum, neurons), max(1, as_count(step, neurons))
    return [Cut(None, 0), *(Cut(n, n) for n in range(width, high + 1, width))]


def keep_vector(mask: Mapping[str, Tensor], pruned: int) -> Tensor:
    """1 for kept, 0 for the `pruned` lowest neurons; float32 (neurons,) on the CPU."""
    keep = torch.ones(len(flatten(mask)))
    keep[ranking(mask)[:pruned]] = 0
    return keep


@torch.no_grad()
def prune_(model: nn.Module, original: Mapping[str, Tensor], keep: Tensor) -> None:
    """Set γ of every layer in place to its `original` value, or to 0 where `keep` is 0.

    original: layer → γ (channels,) of the unpruned model. keep: (neurons,) in layer order.
    """
    layers = norm_layers(model)
    parts = keep.split([layer.weight.numel() for layer in layers.values()])
    for (name, layer), part in zip(layers.items(), parts, strict=True):
        layer.weight.copy_(torch.where(part.to(layer.weight.device) > 0, original[name], 0.0))


def scales(model: nn.Module) -> dict[str, Tensor]:
    """layer → a copy of its γ."""
    return {name: layer.weight.detach().clone() for name, layer in norm_layers(model).items()}


Refit = Callable[[nn.Module], object]  # changes a pruned model in place, BatchNorm statistics say


def prune_at_(model: nn.Module, mask: Mapping[str, Tensor], pruned: int, refit: Refit | None = None) -> nn.Module:
    """Take the `pruned` lowest neurons out of `model`, in place, and refit it if any; returns model."""
    prune_(model, scales(model), keep_vector(mask, pruned))
    if refit and pruned:
        refit(model)
    return model


def pruned_copy(model: nn.Module, mask: Mapping[str, Tensor], pruned: int, refit: Refit | None = None) -> nn.Module:
    """The same to a copy of `model` (`light_copy`), which stays as it is."""
    return prune_at_(light_copy(model), mask, pruned, refit)


def sweep(
    model: nn.Module,
    mask: Mapping[str, Tensor],
    points: Iterable[Cut],
    judge: Callable[[nn.Module], R],
    refit: Refit | None = None,
) -> Iterator[tuple[Cut, R]]:
    """Judge the pruned model at every point; a point that prunes the same neurons is not judged again.

    points: in any order; the next is asked for once the last was judged. refit: run on the working copy after
    each pruning; it must not depend on what an earlier point left in the model's buffers.

    Raises:
        MaskError: the mask is not this model's.
    """
    check_mask(model, mask)
    working, original = light_copy(model), scales(model)
    known: dict[int, R] = {}
    for point in points:
        if point.pruned not in known:
            prune_(working, original, keep_vector(mask, point.pruned))
            if refit and point.pruned:
                refit(working)
            known[point.pruned] = judge(working if point.pruned else model)
        yield point, known[point.pruned]
