"""CIFAR-10, CIFAR-100, GTSRB, MNIST and SVHN through torchvision, downloaded if absent.

Torchvision unpickles the CIFAR batches, but only after it has checked that their MD5 is the published one. Nothing else
is unpickled.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.pixels import read_images
from rnp_mlflow.errors import DataError
from rnp_mlflow.loading import read_torch

SETS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "gtsrb": "GTSRB", "mnist": "MNIST", "svhn": "SVHN"}


def read(name: str, root: Path, size: int | None, grey: bool = False) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Read the training set, the test set and the class names.

    size, grey: used only for GTSRB, whose images are files of many sizes: scale to `size` (32 if None), one channel.

    Raises:
        DataError: the files are absent and cannot be downloaded, or they are corrupted.
    """
    from torchvision import datasets

    dataset_class = _mnist(datasets.MNIST) if name == "mnist" else getattr(datasets, SETS[name])
    try:
        if name in ("gtsrb", "svhn"):
            parts = [dataset_class(str(root), split=split, download=True) for split in ("train", "test")]
        else:
            parts = [dataset_class(str(root), train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{name} is not in {root} and could not be downloaded ({reason}); put torchvision's files "
            "there, or an image folder with train/CLASS and test/CLASS"
        ) from None
    train, test = (_imageset(part, root, size or 32, grey) for part in parts)
    count = int(train.labels.max()) + 1
    names = getattr(parts[0], "classes", None) or [str(k) for k in range(count)]
    return train, test, tuple(map(str, names))


def _mnist(kind: Any) -> Any:
    """Return torchvision's MNIST, which reads its older form, `processed/*.pt`, as untrusted files are read."""

    def load(self: Any) -> Any:
        return _older_mnist(Path(self.processed_folder, self.training_file if self.train else self.test_file))

    return type(kind.__name__, (kind,), {"_load_legacy_data": load})


def _older_mnist(file: Path) -> tuple[Tensor, Tensor]:
    """Read the images, uint8 (N, 28, 28), and the labels, int64 (N,), 0 to 9.

    Raises:
        DataError: the file holds something else.
    """
    content = read_torch(file)
    parts = content if isinstance(content, tuple) and len(content) == 2 else (None, None)
    images, labels = parts
    if isinstance(images, Tensor) and isinstance(labels, Tensor) and images.dtype == torch.uint8:
        counted = labels.dtype == torch.int64 and labels.shape == images.shape[:1] and len(labels)
        if counted and images.shape[1:] == (28, 28) and labels.min() >= 0 and labels.max() <= 9:
            return images, labels
    raise DataError(f"{file} does not hold MNIST's images and labels")


def _imageset(part: Any, root: Path, size: int, grey: bool) -> ImageSet:
    if hasattr(part, "_samples"):  # GTSRB
        files, answers = zip(*part._samples, strict=True)
        return ImageSet(read_images(_below(root, files), size, grey), torch.tensor(answers))
    pixels = np.asarray(part.data)
    labels = part.labels if hasattr(part, "labels") else part.targets  # SVHN names them `labels`
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.shape[1] not in (1, 3):  # SVHN is already NCHW
        pixels = pixels.transpose(0, 3, 1, 2)
    images = torch.from_numpy(np.ascontiguousarray(pixels))
    return ImageSet(images, torch.as_tensor(np.asarray(labels), dtype=torch.int64))


def _below(root: Path, files: Sequence[str]) -> list[Path]:
    """Return the files that GTSRB's table names; it must not name others than those below its folder.

    Raises:
        DataError: a file is elsewhere.
    """
    home = (root / "gtsrb").resolve()
    for file in files:
        if not Path(file).resolve().is_relative_to(home):
            raise DataError(f"the table of images in {root} names {file}, which is not below that folder")
    return [Path(file) for file in files]
