"""Numpy archives: x_train, y_train and optionally x_test, y_test; or only x, y. Images are uint8 NHWC (or NHW)."""

from pathlib import Path

import numpy as np
import torch

from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.errors import DataError
from rnp_mlflow.loading import read_npz


def read(file: Path) -> tuple[ImageSet, ImageSet | None]:
    """Read the training set and the test set (None if there is none). Nothing in the file is executed.

    Raises:
        DataError: the file is not such an archive, or an array is missing or has another dtype or shape.
    """
    arrays = read_npz(file)
    if "x_train" not in arrays and "x" in arrays:
        return _images(arrays, "x", "y", file), None
    train = _images(arrays, "x_train", "y_train", file)
    return train, _images(arrays, "x_test", "y_test", file) if "x_test" in arrays else None


def read_one(file: Path) -> ImageSet:
    """Read the only set of an archive: x and y, or x_test and y_test.

    Raises:
        DataError: see `read`.
    """
    arrays = read_npz(file)
    return _images(arrays, "x", "y", file) if "x" in arrays else _images(arrays, "x_test", "y_test", file)


def _images(arrays: dict[str, np.ndarray], x: str, y: str, file: Path) -> ImageSet:
    for name in (x, y):
        if name not in arrays:
            raise DataError(f"{file} has no array {name}; it has {', '.join(sorted(arrays))[:120] or 'none'}")
    images, labels = arrays[x], arrays[y].reshape(-1)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise DataError(f"{file}: {x} must be uint8 NHWC, not {images.dtype} {images.shape}")
    if labels.dtype.kind not in "iu" or (len(labels) and labels.min() < 0):
        raise DataError(f"{file}: {y} must be integers from 0")
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return ImageSet(pixels, torch.from_numpy(labels.astype(np.int64)))
