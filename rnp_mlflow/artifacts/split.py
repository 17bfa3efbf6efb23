"""`defence_index.txt` and `holdout_index.txt`: the defender's training images, and those of them that train nothing."""

from pathlib import Path

import torch
from torch import Tensor

from rnp_mlflow.artifacts.table import DEFENCE_INDEX, HOLDOUT_INDEX
from rnp_mlflow.interop import indices


def write(folder: Path, given: Tensor, held: Tensor) -> None:
    """Write the indices (int64) of all the defender's images, and of those that are held out."""
    indices.write(folder / DEFENCE_INDEX, given)
    indices.write(folder / HOLDOUT_INDEX, held)


def read(file: Path) -> Tensor:
    """Read one of the two files: int64 indices, in its order."""
    return torch.tensor([int(line) for line in file.read_text().split()])
