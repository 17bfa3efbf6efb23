"""The defender's clean images: drawn by seed or index file, or as an unlearn run recorded them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rnp_mlflow.artifacts import split as split_files
from rnp_mlflow.artifacts import table
from rnp_mlflow.config import Unlearn
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.seeds import generator
from rnp_mlflow.data import subset
from rnp_mlflow.data.imageset import Dataset, ImageSet
from rnp_mlflow.interop import indices
from rnp_mlflow.pipeline import holdout_split
from rnp_mlflow.steps import runtime
from rnp_mlflow.tracking import lineage


@dataclass(frozen=True)
class CleanImages:
    """The defender's images: training indices of all and of those held out; both sets on the device."""

    indices: Tensor
    holdout_indices: Tensor
    train: ImageSet
    holdout: ImageSet


def labeled(images: ImageSet) -> LabeledImages:
    """Return the images as the method takes them."""
    return LabeledImages(images.images, images.labels)


def split(data: Dataset, given: Tensor, holdout: Tensor, device: torch.device) -> CleanImages:
    """Take clean images by their indices; `holdout` is a part of `given`."""
    train = given[~torch.isin(given, holdout)]
    return CleanImages(given, holdout, data.train[train].to(device), data.train[holdout].to(device))


def draw(data: Dataset, settings: Unlearn, device: torch.device) -> CleanImages:
    """Take the defender's images by `index` or `ratio`, and hold a part of them out, by seed.

    Images without a test part are the defender's own: without an `index` all of them are taken.

    Raises:
        DataError: bad index file, or fewer than two images of a class.
    """
    labels = data.train.labels
    if settings.index:
        given = indices.read(Path(settings.index), labels)
    else:
        ratio = settings.ratio
        if data.test is None:
            runtime.log(f"  there is no test part, so all {len(labels)} images are the defender's; ratio is not used")
            ratio = 1.0
        given = subset.defence_indices(labels, ratio, generator(settings.seed, "defence"))
    holdout = holdout_split(labels[given], settings.holdout, settings.seed)
    return split(data, given, given[holdout], device)


def recorded(unlearn_run_id: str, data: Dataset, device: torch.device) -> CleanImages:
    """Read the images that an unlearn run recorded."""
    given, holdout = (
        split_files.read(lineage.fetch(unlearn_run_id, name)) for name in (table.DEFENCE_INDEX, table.HOLDOUT_INDEX)
    )
    return split(data, given, holdout, device)
