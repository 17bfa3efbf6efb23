"""Index files: one training index per line, like BackdoorBench's `defence_index.txt`."""

from pathlib import Path

import torch
from torch import Tensor

from rnp_mlflow.errors import DataError
from rnp_mlflow.loading import check_regular

LARGEST = 64 << 20  # bytes


def write(file: Path, indices: Tensor) -> None:
    """Write one integer per line."""
    file.write_text("".join(f"{k}\n" for k in indices.tolist()))


def read(file: Path, labels: Tensor) -> Tensor:
    """Read indices (int64, in the file's order) into a training set with these labels.

    Raises:
        DataError: the file is unreadable, an index is invalid or repeated, or a class has fewer than two images.
    """
    check_regular(file, DataError, LARGEST)
    try:
        lines = file.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"index file {file} cannot be read: {error}") from None
    try:
        indices = torch.tensor([int(line) for line in lines], dtype=torch.int64)
    except ValueError as error:
        raise DataError(f"index file {file}: give one integer per line ({error})") from None
    if not len(indices) or indices.min() < 0 or indices.max() >= len(labels):
        raise DataError(f"index file {file}: give indices from 0 to {len(labels) - 1}, at least one")
    if len(indices.unique()) != len(indices):
        raise DataError(f"index file {file}: an index occurs twice")
    counts = torch.bincount(labels[indices], minlength=int(labels.max()) + 1)
    if counts.min() < 2:
        raise DataError(f"index file {file}: class {int(counts.argmin())} has fewer than two images")
    return indices
