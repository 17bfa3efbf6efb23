"""Index files: one training index a line, as BackdoorBench's `defence_index.txt`."""

from pathlib import Path

import torch
from torch import Tensor

from rnp_mlflow.errors import DataError


def write(file: Path, indices: Tensor) -> None:
    """One integer a line."""
    file.write_text("".join(f"{k}\n" for k in indices.tolist()))


def read(file: Path, labels: Tensor) -> Tensor:
    """Indices (int64, in the file's order) into a training set with these labels.

    Raises:
        DataError: unreadable, not integers, out of range, repeated, or a class has fewer than two.
    """
    try:
        lines = file.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"index file {file} cannot be read: {error}") from None
    try:
        found = torch.tensor([int(line) for line in lines], dtype=torch.int64)
    except ValueError as error:
        raise DataError(f"index file {file}: not an integer a line ({error})") from None
    if not len(found) or found.min() < 0 or found.max() >= len(labels):
        raise DataError(f"index file {file}: give indices from 0 to {len(labels) - 1}, at least one")
    if len(found.unique()) != len(found):
        raise DataError(f"index file {file}: an index is there twice")
    counts = torch.bincount(labels[found], minlength=int(labels.max()) + 1)
    if counts.min() < 2:
        raise DataError(f"index file {file}: class {int(counts.argmin())} has fewer than two images")
    return found
