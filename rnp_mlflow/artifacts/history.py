"""`history.csv`: a row for each epoch of training, unlearning or recovery."""

import csv
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path

from rnp_mlflow.artifacts.table import HISTORY
from rnp_mlflow.core.batches import EpochRecord
from rnp_mlflow.core.evaluate import Scores


def write(folder: Path, history: Sequence[EpochRecord]) -> None:
    """Write the epochs, with test scores for the epochs that were evaluated."""
    names = ("epoch", "loss", "accuracy", "steps", *(f"test_{field.name}" for field in fields(Scores)))
    with (folder / HISTORY).open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(names)
        for r in history:
            writer.writerow(
                [r.epoch, repr(r.loss), repr(r.accuracy), r.steps, *(astuple(r.scores) if r.scores else [""] * 3)]
            )
