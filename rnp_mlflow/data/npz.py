"""A numpy archive: x_train, y_train, x_test, y_test; images uint8 NHWC (or NHW), integer labels."""

import zipfile
from pathlib import Path

import numpy as np
import torch

from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.errors import DataError


def read(file: Path) -> tuple[ImageSet, ImageSet]:
    """Training and test set. Nothing in the file is executed: pickled arrays are refused.

    Raises:
        DataError: not such an archive, an array is missing, or of another type or shape.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            return tuple(_part(archive, part, file) for part in ("train", "test"))  # type: ignore[return-value]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise DataError(f"{file} is no .npz file that can be read without pickle: {error}") from None


def _part(archive: np.lib.npyio.NpzFile, part: str, file: Path) -> ImageSet:
    for name in (f"x_{part}", f"y_{part}"):
        if name not in archive:
            raise DataError(f"{file} has no array {name}; it needs x_train, y_train, x_test, y_test")
    images, labels = archive[f"x_{part}"], archive[f"y_{part}"].reshape(-1)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise DataError(f"{file}: x_{part} must be uint8 NHWC, not {images.dtype} {images.shape}")
    if labels.dtype.kind not in "iu" or (len(labels) and labels.min() < 0):
        raise DataError(f"{file}: y_{part} must be integers from 0")
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return ImageSet(pixels, torch.from_numpy(labels.astype(np.int64)))
