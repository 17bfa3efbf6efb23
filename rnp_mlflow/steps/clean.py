"""The defender's clean images: drawn by seed or index file, or as an unlearn run recorded them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rnp_mlflow.artifacts import split as split_files
from rnp_mlflow.artifacts import table
from rnp_mlflow.config import Unlearn
from rnp_mlflow.core.seeds import generator
from rnp_mlflow.data import subset
from rnp_mlflow.data.imageset import Dataset, ImageSet
from rnp_mlflow.interop import indices
from rnp_mlflow.tracking import lineage


@dataclass(frozen=True)
class CleanImages:
    """The defender's images: training indices of all, of those held out, and both sets on the device."""

    indices: Tensor
    held_indices: Tensor
    used: ImageSet
    held: ImageSet


def split(data: Dataset, given: Tensor, held: Tensor, device: torch.device) -> CleanImages:
    """Clean images from their indices; `held` is a part of `given`."""
    used = given[~torch.isin(given, held)]
    return CleanImages(given, held, data.train[used].to(device), data.train[held].to(device))


def draw(data: Dataset, settings: Unlearn, device: torch.device) -> CleanImages:
    """The defender's images by `index` or `ratio`, and the part of them held out, by seed.

    Images without a test part are the defender's own: without an `index` all of them are taken.

    Raises:
        DataError: bad index file, or fewer than two images of a class.
    """
    labels = data.train.labels
    if settings.index:
        given = indices.read(Path(settings.index), labels)
    else:
        ratio = settings.ratio if data.test is not None else 1.0
        given = subset.defence_indices(labels, ratio, generator(settings.seed, "defence"))
    held = subset.hold_out(labels[given], settings.holdout, generator(settings.seed, "holdout"))
    return split(data, given, given[held], device)


def recorded(unlearn_run_id: str, data: Dataset, device: torch.device) -> CleanImages:
    """Read the images that an unlearn run recorded."""
    given, held = (
        split_files.read(lineage.fetch(unlearn_run_id, name)) for name in (table.DEFENCE_INDEX, table.HOLDOUT_INDEX)
    )
    return split(data, given, held, device)
