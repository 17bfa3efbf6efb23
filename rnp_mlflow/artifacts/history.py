"""`history.csv`: a row for each epoch of training, unlearning or recovery."""

import csv
from collections.abc import Sequence
from pathlib import Path

from rnp_mlflow.artifacts.table import HISTORY
from rnp_mlflow.core.batches import EpochRecord


def write(folder: Path, history: Sequence[EpochRecord]) -> None:
    """Write the epochs."""
    with (folder / HISTORY).open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("epoch", "loss", "accuracy", "steps"))
        for r in history:
            writer.writerow((r.epoch, repr(r.loss), repr(r.accuracy), r.steps))
