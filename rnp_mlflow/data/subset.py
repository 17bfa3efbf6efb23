"""Class-balanced subsets: of training images, the defender's images, and their holdout."""

import math

import torch
from torch import Generator, Tensor

from rnp_mlflow.errors import DataError


def stratified_indices(labels: Tensor, count: int, generator: Generator) -> Tensor:
    """Return sorted indices of `count` images, balanced over the classes as far as possible.

    Raises:
        DataError: there are fewer than `count` images.
    """
    if count > len(labels):
        raise DataError(f"{count} images were requested, but there are only {len(labels)}: give at most {len(labels)}")
    order = torch.randperm(len(labels), generator=generator)
    rank = torch.empty_like(order)  # number of earlier images of the same class
    for label in labels.unique():
        members = (labels[order] == label).nonzero().flatten()
        rank[members] = torch.arange(len(members))
    return order[rank.argsort(stable=True)[:count]].sort().values


def defence_indices(labels: Tensor, ratio: float, generator: Generator) -> Tensor:
    """Return round(ratio × N) sorted training indices for the defender, balanced over the classes.

    Raises:
        DataError: a class would get fewer than two images.
    """
    count = round(ratio * len(labels))
    found = stratified_indices(labels, count, generator)
    each = torch.bincount(labels, minlength=int(labels.max()) + 1)
    if each.min() < 2:
        raise DataError(
            f"class {int(each.argmin())} has {int(each.min())} training images; each class needs at least two"
        )
    if count < 2 or torch.bincount(labels[found], minlength=len(each)).min() < 2:
        raise DataError(
            f"ratio={ratio:g} of {len(labels)} training images leaves some class fewer than two; "
            f"give at least {min(1.0, 3 * len(each) / len(labels)):.2g}"
        )
    return found


def holdout_indices(labels: Tensor, share: float, generator: Generator) -> Tensor:
    """Return the sorted positions of the holdout among the defender's images, balanced over the classes.

    The holdout selects the operating point and is never trained on. labels: of the defender's images. At least one
    image is held out.

    Raises:
        DataError: fewer than two images are left, and BatchNorm cannot be trained with one.
    """
    count = max(1, round(share * len(labels)))
    if len(labels) - count < 2:
        most = math.floor(100 * (len(labels) - 2) / max(1, len(labels))) / 100
        hint = f"a holdout of at most {most:g}, or " if most > 0 else ""
        raise DataError(
            f"holdout={share:g} of {len(labels)} clean images leaves {max(0, len(labels) - count)} to train with, and "
            f"at least two are needed: give {hint}more images"
        )
    return stratified_indices(labels, count, generator)
