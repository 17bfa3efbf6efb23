"""`defence_index.txt` and `holdout_index.txt`: the defender's clean images, and those of them in the holdout."""

from pathlib import Path

import torch
from torch import Tensor

from rnp_mlflow.artifacts.table import DEFENCE_INDEX, HOLDOUT_INDEX
from rnp_mlflow.interop import indices


def write(folder: Path, defence: Tensor, holdout: Tensor) -> None:
    """Write the indices (int64) of all the defender's images, and of the holdout."""
    indices.write(folder / DEFENCE_INDEX, defence)
    indices.write(folder / HOLDOUT_INDEX, holdout)


def read(file: Path) -> Tensor:
    """Read one of the two files: int64 indices, in the order of the file."""
    return torch.tensor([int(line) for line in file.read_text().split()])
