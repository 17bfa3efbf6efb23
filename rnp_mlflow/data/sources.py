"""Datasets by name.

To add one, write a file that reads it into `ImageSet`s, and add a branch to `_read_parts`.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator

from rnp_mlflow.data import digits, folder, npz, torchvision_sets
from rnp_mlflow.data.imageset import Dataset, ImageSet
from rnp_mlflow.data.pixels import convert_images
from rnp_mlflow.data.subset import stratified_indices
from rnp_mlflow.errors import DataError
from rnp_mlflow.loading import check_regular

FROM_FILES = ("tiny", "celeba")  # only their normalisation is known; read from a folder or npz file
NAMES = ("digits", *torchvision_sets.SETS, *FROM_FILES, "folder", "npz")

# BackdoorBench's values (RNP's figures were made with these).
NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "mnist": ((0.5,), (0.5,)),
    "svhn": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "celeba": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
# Datasets whose mirrored images keep their label; for a folder or npz file this is unknown.
FLIP_SAFE = ("cifar10", "cifar100", *FROM_FILES)


def load(  # noqa: PLR0913 (the fields of artifacts.source.Source)
    name: str,
    data_dir: str | None = None,
    *,
    image_size: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_order: str = "number",
    flip: str = "auto",
    grey: bool = False,
) -> Dataset:
    """Load a dataset: all of it, or `train_size` and `test_size` images of it (the same ones for every seed).

    name: one of `NAMES`. data_dir: the folder, or the npz file; image folders and npz files may also replace
    torchvision's files. If there is no test part (only `CLASS/*`, or `x` and `y`), the images are the defender's and
    `test` is None. image_size: scale every image to so many pixels a side; without it, images that differ in size
    from the first are refused. mean, std: per channel, for pixels scaled to [0, 1]; default: those known for
    `name`, else those of the training images. class_order: how to sort class folders that are all numbers, "number" or
    "text". flip: whether a mirrored image keeps its label: "yes", "no", or "auto" (decided by `name`). grey: read
    images as one channel.

    Raises:
        DataError: unknown name, missing folder, empty class, unreadable or unequal images, mean or std out of range.
    """
    if name not in NAMES:
        raise DataError(f"unknown dataset {name!r}; give one of {', '.join(NAMES)}")
    test: ImageSet | None
    if name == "digits":
        if data_dir is not None:
            raise DataError(f"dataset=digits is built in; give dataset=folder or npz for {data_dir}")
        train, test = digits.read()
        classes: tuple[str, ...] = digits.CLASSES
    else:
        train, test, classes = _read_parts(
            name, data_dir, image_size, train_size, test_size, order=class_order, grey=grey
        )
    train = _subset_and_convert(train, train_size, image_size, grey)
    test = _subset_and_convert(test, test_size, image_size, grey) if test is not None else None
    default_mean, default_std = NORMALISATION.get(name) or statistics(train)
    channels = train.images.shape[1]
    if len(default_mean) != channels and not (mean and std):
        raise DataError(
            f"the normalisation of dataset={name} is mean {default_mean} and std {default_std}, for images of "
            f"{len(default_mean)} channel{'s' * (len(default_mean) > 1)}, but these have {channels}: give mean and "
            f"std with {channels} value{'s' * (channels > 1)} each, those that the model was trained with"
        )
    mean, std = tuple(mean or default_mean), tuple(std or default_std)
    check_normalisation(mean, std, train.images.shape[1])
    mirrored = name in FLIP_SAFE if flip == "auto" else flip == "yes"
    return Dataset(name, train, test, classes, mean, std, mirrored)


def check_normalisation(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Check that mean and std match the channels, and pixels scaled to [0, 1].

    Raises:
        DataError: a count differs from `channels`, or a value is out of range.
    """
    valid = all(map(math.isfinite, (*mean, *std))) and all(value > 0 for value in std)
    if len(mean) != channels or len(std) != channels or not valid:
        raise DataError(f"mean and std need {channels} values each, finite, std above 0: {mean}, {std}")
    if not all(0 <= value <= 1 for value in mean) or not all(value <= 1 for value in std):
        raise DataError(
            f"mean {mean} and std {std}: mean must be from 0 to 1 and std at most 1, for pixels scaled to 0 to 1; "
            "divide values on the 0-255 scale by 255"
        )


def statistics(train: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation per channel, for pixels scaled to [0, 1], from a histogram of levels."""
    counts = torch.zeros(train.images.shape[1], 256, dtype=torch.float64)
    for part in train.images.split(256):
        counts += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in part.unbind(1)])
    levels, total = torch.arange(256, dtype=torch.float64) / 255, counts.sum(1)
    mean = (counts * levels).sum(1) / total
    variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / (total - 1)
    means, stds = mean.tolist(), variance.sqrt().tolist()
    return tuple(round(m, 4) for m in means), tuple(max(round(s, 4), 1e-4) for s in stds)


def _read_parts(
    name: str,
    data_dir: str | None,
    size: int | None,
    train_size: int | None,
    test_size: int | None,
    *,
    order: str,
    grey: bool,
) -> tuple[ImageSet, ImageSet | None, tuple[str, ...]]:
    if data_dir is None:
        raise DataError(f"dataset={name} needs data_dir: give the folder or npz file of its images")
    root = Path(data_dir).expanduser()
    if name in ("folder", "npz") and not root.exists():
        raise DataError(f"data_dir={root} does not exist")
    if root.exists() and not root.is_dir():
        check_regular(root, DataError)
    if name == "npz" or root.is_file():
        train, test = npz.read(root)
        count = int(max(part.labels.max() for part in (train, test) if part is not None)) + 1
        return train, test, tuple(str(k) for k in range(count))
    if name == "folder" or folder.is_image_folder(root):
        return folder.read(root, size, train_size, test_size, order=order, grey=grey)
    if name in FROM_FILES:
        raise DataError(f"dataset={name} needs an image folder or an npz file, but data_dir={root} is neither")
    return torchvision_sets.read(name, root, size, grey)


def _subset_and_convert(images: ImageSet, count: int | None, size: int | None, grey: bool) -> ImageSet:
    """Return `count` of the images (all if None) in the requested size and channels."""
    if count is not None and count != len(images):
        images = images[stratified_indices(images.labels, count, Generator().manual_seed(0))]
    pixels = convert_images(images.images, size, grey)
    return images if pixels is images.images else ImageSet(pixels, images.labels)
