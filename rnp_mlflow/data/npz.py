"""Numpy archives: x_train, y_train and optionally x_test, y_test; or only x, y. Images are uint8 NHWC (or NHW)."""

import logging
from pathlib import Path

import numpy as np
import torch

from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.errors import DataError
from rnp_mlflow.loading import read_npz

log = logging.getLogger(__name__)
TEST_PARTS = ("test", "val", "valid", "validation")  # the first that exists is the test part, as in folders
MOST_CLASSES = 2**20  # labels above are no class numbers, and counting them would exhaust the memory


def read(file: Path) -> tuple[ImageSet, ImageSet | None]:
    """Read the training set and the test set (None if there is none). Nothing in the file is executed.

    Without x_test, x_val (or x_valid, x_validation) is the test part. The log names it, and arrays that are left out.

    Raises:
        DataError: the file is not such an archive, or an array is missing or has another dtype or shape.
    """
    arrays = read_npz(file)
    if "x_train" not in arrays and "x" in arrays:
        _log_left_out(arrays, ("x", "y"), file)
        return _images(arrays, "x", "y", file), None
    train = _images(arrays, "x_train", "y_train", file)
    part = next((name for name in TEST_PARTS if f"x_{name}" in arrays), None)
    if part not in (None, TEST_PARTS[0]):
        log.warning(f"{file}: x_{part} is the test part, because no x_test exists")
    _log_left_out(arrays, ("x_train", "y_train", f"x_{part}", f"y_{part}"), file)
    return train, _images(arrays, f"x_{part}", f"y_{part}", file) if part else None


def read_one(file: Path) -> ImageSet:
    """Read the only set of an archive: x and y, or x_test and y_test.

    Raises:
        DataError: see `read`.
    """
    arrays = read_npz(file)
    names = ("x", "y") if "x" in arrays else ("x_test", "y_test")
    _log_left_out(arrays, names, file)
    return _images(arrays, *names, file)


def _log_left_out(arrays: dict[str, np.ndarray], used: tuple[str, ...], file: Path) -> None:
    """Log the arrays that are not read, in one line."""
    others = sorted(set(arrays) - set(used))
    if others:
        read = " and ".join(name for name in used if name in arrays)
        more = f" and {len(others) - 8} more" if len(others) > 8 else ""
        log.warning(f"{file}: only {read} are read, left out {', '.join(others[:8])}{more}")


def _images(arrays: dict[str, np.ndarray], x: str, y: str, file: Path) -> ImageSet:
    for name in (x, y):
        if name not in arrays:
            raise DataError(f"{file} has no array {name}; it has {', '.join(sorted(arrays))[:120] or 'none'}")
    images, labels = arrays[x], _labels(arrays[y], y, file)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise DataError(f"{file}: {x} must be uint8 NHWC, not {images.dtype} {images.shape}")
    if len(images) != len(labels):
        raise DataError(f"{file}: {len(images)} images in {x} need as many labels, but {y} has {len(labels)}")
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return ImageSet(pixels, torch.from_numpy(labels.astype(np.int64)))


def _labels(values: np.ndarray, name: str, file: Path) -> np.ndarray:
    """Return the labels as one integer per image.

    Raises:
        DataError: they are one-hot, not integers, negative, or too large for class numbers.
    """
    if values.ndim > 2 or (values.ndim == 2 and values.shape[1] > 1):
        raise DataError(
            f"{file}: {name} must be integers from 0, one per image, not {values.shape}: give {name}.argmax(1) if it "
            "is one-hot"
        )
    if values.dtype.kind not in "iu":
        raise DataError(f"{file}: {name} must be integers from 0, not {values.dtype}: give {name}.astype(int)")
    labels = values.reshape(-1)
    if len(labels) and (labels.min() < 0 or labels.max() >= MOST_CLASSES):
        odd = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{file}: {name} must be integers from 0, the number of a class each, but one is {odd}")
    return labels
