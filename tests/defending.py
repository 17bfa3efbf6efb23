"""What the tests of `defend` share: clean images, how the suspect normalises them, and settings that make it quick."""

from typing import TypedDict

import outside_files as files
from torch import Tensor

from rnp_mlflow.core.params import DefenseSettings


class Normalisation(TypedDict):
    mean: tuple[float, ...]
    std: tuple[float, ...]


NORMALISATION: Normalisation = {"mean": files.MEAN, "std": files.STD}
QUICK: DefenseSettings = {"unlearning_epochs": 1, "recovering_epochs": 1, "pruning_step": 0.3, "holdout": 0.25,
                          "proxy_steps": 2, "holdout_crops": 1, "repair_steps": 2}  # fmt: skip


def pixels() -> tuple[Tensor, Tensor]:
    """Images uint8 (24, 3, 8, 8) that the suspect of `outside_files` knows, and labels."""
    return files.clean_tensors(24, 7)
