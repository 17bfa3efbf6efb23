"""Drawing images class by class: training subsets, and the defender's share with its held-out part."""

import torch
from torch import Generator, Tensor

from rnp_mlflow.errors import DataError


def per_class(labels: Tensor, count: int, generator: Generator) -> Tensor:
    """Sorted indices of `count` images, as even over the classes as the classes allow.

    Raises:
        DataError: there are fewer images than that.
    """
    if count > len(labels):
        raise DataError(f"{count} images asked for, there are {len(labels)}")
    order = torch.randperm(len(labels), generator=generator)
    turn = torch.empty_like(order)  # how many images of the same class stand before this one
    for label in labels.unique():
        own = (labels[order] == label).nonzero().flatten()
        turn[own] = torch.arange(len(own))
    return order[turn.argsort(stable=True)[:count]].sort().values


def defence_indices(labels: Tensor, ratio: float, generator: Generator) -> Tensor:
    """round(ratio × N) training indices for the defender, class by class, sorted.

    Raises:
        DataError: that gives some class fewer than two images.
    """
    count = round(ratio * len(labels))
    found = per_class(labels, count, generator)
    each = torch.bincount(labels, minlength=int(labels.max()) + 1)
    if each.min() < 2:
        raise DataError(
            f"class {int(each.argmin())} has {int(each.min())} training images: too few, two of each are needed"
        )
    if count < 2 or torch.bincount(labels[found], minlength=len(each)).min() < 2:
        raise DataError(
            f"ratio={ratio:g} of {len(labels)} training images leaves some class fewer than two; "
            f"give at least {min(1.0, 3 * len(each) / len(labels)):.2g}"
        )
    return found


def hold_out(labels: Tensor, share: float, generator: Generator) -> Tensor:
    """Positions, sorted, of the defender's images that choose the threshold and train nothing; class by class.

    labels: of the defender's images. At least one is held out, and at least one is not.
    """
    return per_class(labels, min(max(1, round(share * len(labels))), len(labels) - 1), generator)
