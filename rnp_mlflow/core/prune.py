"""Pruning by mask value, and the sweep that draws the curve.

A neuron is pruned by setting its parameters to 0 in the *original* model: of a norm its γ, while β stays (RNP, section
3.3); of a hidden channel its weights and bias; of a head its columns of the projection.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

import torch
from torch import Tensor, nn

from rnp_mlflow.core.neurons import check_mask, copy_sharing_weights, flatten, scaled_parameters
from rnp_mlflow.core.params import PruningBy
from rnp_mlflow.core.units import units_of
from rnp_mlflow.errors import ConfigError

R = TypeVar("R")
BNCalibration = Callable[[nn.Module], object]  # corrects a pruned model's BatchNorm statistics in place


@dataclass(frozen=True)
class SweepPoint:
    """One point of a sweep: its cutoff, and how many neurons that prunes.

    cutoff: the mask value (0 to 1) or the number asked for; None for the unpruned model.
    """

    cutoff: float | int | None
    num_pruned: int


def decimal_range(maximum: float, step: float) -> list[float]:
    """Return 0, step, 2·step, … up to and including `maximum`, each the float nearest to the exact decimal.

    Raises:
        ConfigError: step is not above 0, or maximum is below 0.
    """
    high, width = Decimal(str(maximum)), Decimal(str(step))
    if width <= 0 or high < 0:
        raise ConfigError(f"a sweep needs step > 0 and max ≥ 0, not step {step} and max {maximum}")
    return [float(width * k) for k in range(int(high / width) + 1)]


def ranking(mask: Mapping[str, Tensor]) -> Tensor:
    """Return indices into the flattened mask, lowest value first; ties by layer, then channel. (neurons,)"""
    return torch.argsort(flatten(mask), stable=True)


def as_count(value: float, neurons: int) -> int:
    """Convert to a number of neurons: below 1 a share of all (rounded to nearest), from 1 on a whole count.

    Raises:
        ConfigError: negative, above the model's neurons, or neither a share nor a whole number.
    """
    if 0 <= value < 1:
        return round(Decimal(str(value)) * neurons)
    if value < 0 or value != int(value) or value > neurons:
        raise ConfigError(
            f"{value:g} is not a number of neurons: give a share below 1 or a whole number up to {neurons}"
        )
    return int(value)


def sweep_point(mask: Mapping[str, Tensor], by: PruningBy, value: float) -> SweepPoint:
    """Return the point that prunes neurons with mask ≤ value or, by number, exactly that many of them."""
    if by == "threshold":
        # Both as float32: a mask value written 0.3 is pruned at 0.3, one float32 above it is not.
        return SweepPoint(value, int((flatten(mask) <= torch.tensor(value, dtype=torch.float32)).sum()))
    count = as_count(value, len(flatten(mask)))
    return SweepPoint(count, count)


def sweep_cutoffs(mask: Mapping[str, Tensor], by: PruningBy, maximum: float, step: float) -> list[SweepPoint]:
    """Return the unpruned model's point, then one for every multiple of `step` up to `maximum`.

    By threshold both are mask values. By number both are counts of neurons or, below 1, shares of
    all neurons; points that round to the same count are given once.

    Raises:
        ConfigError: the bounds are out of range.
    """
    if by == "threshold":
        return [SweepPoint(None, 0), *(sweep_point(mask, by, t) for t in decimal_range(maximum, step))]
    neurons = len(flatten(mask))
    high, width = as_count(maximum, neurons), max(1, as_count(step, neurons))
    return [SweepPoint(None, 0), *(SweepPoint(n, n) for n in range(width, high + 1, width))]


def keep_mask(mask: Mapping[str, Tensor], num_pruned: int) -> Tensor:
    """Return 0 for the `num_pruned` lowest neurons and 1 for the others; float32 (neurons,) on the CPU."""
    keep = torch.ones(len(flatten(mask)))
    keep[ranking(mask)[:num_pruned]] = 0
    return keep


@torch.no_grad()
def prune_(model: nn.Module, original: Mapping[str, Tensor], keep: Tensor) -> None:
    """Set the parameters of every neuron in place to their `original` values, or to 0 if `keep` is 0.

    original: parameter → values in the unpruned model. keep: (neurons,) in layer order.
    """
    layers = units_of(model)
    pruned = dict(original)
    for layer, kept in zip(layers.values(), keep.split([layer.count for layer in layers.values()]), strict=True):
        for part in layer.parts:
            values = pruned[part.parameter]
            pruned[part.parameter] = torch.where(part.factor(kept.to(values.device), values.ndim) > 0, values, 0.0)
    for name, values in pruned.items():
        model.get_parameter(name).copy_(values)


def originals(model: nn.Module) -> dict[str, Tensor]:
    """Return parameter → a copy of its values, for all that belong to neurons."""
    return {name: model.get_parameter(name).detach().clone() for name in scaled_parameters(model)}


def prune_at_(
    model: nn.Module, mask: Mapping[str, Tensor], num_pruned: int, calibrate: BNCalibration | None = None
) -> nn.Module:
    """Prune the `num_pruned` lowest neurons of `model` in place, and calibrate its statistics; return the model."""
    prune_(model, originals(model), keep_mask(mask, num_pruned))
    if calibrate and num_pruned:
        calibrate(model)
    return model


def pruned_copy(
    model: nn.Module, mask: Mapping[str, Tensor], num_pruned: int, calibrate: BNCalibration | None = None
) -> nn.Module:
    """Do the same to a copy of `model` (`copy_sharing_weights`), which is left unchanged."""
    return prune_at_(copy_sharing_weights(model), mask, num_pruned, calibrate)


def sweep(
    model: nn.Module,
    mask: Mapping[str, Tensor],
    points: Iterable[SweepPoint],
    evaluator: Callable[[nn.Module], R],
    calibrate: BNCalibration | None = None,
) -> Iterator[tuple[SweepPoint, R]]:
    """Evaluate the pruned model at every point; a point that prunes the same neurons is not evaluated again.

    points: in any order; the next is requested after the last was evaluated. calibrate: run on the working copy after
    each pruning; it must not depend on what an earlier point left in the model's buffers.

    Raises:
        MaskError: the mask is not this model's.
    """
    check_mask(model, mask)
    working, original = copy_sharing_weights(model), originals(model)
    known: dict[int, R] = {}
    for point in points:
        if point.num_pruned not in known:
            prune_(working, original, keep_mask(mask, point.num_pruned))
            if calibrate and point.num_pruned:
                calibrate(working)
            known[point.num_pruned] = evaluator(working if point.num_pruned else model)
        yield point, known[point.num_pruned]
