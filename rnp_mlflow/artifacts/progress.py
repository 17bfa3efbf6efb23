"""`progress.csv`: what was measured at a few moments of unlearning or recovery, and what the stop rule saw."""

import csv
from collections.abc import Sequence
from pathlib import Path

from rnp_mlflow.artifacts.table import PROGRESS
from rnp_mlflow.core.evaluate import EvalSet
from rnp_mlflow.core.moments import Moment
from rnp_mlflow.core.unlearn import StopCheck

COLUMNS = (
    "step", "acc", "asr", "ra", "images", "triggered", "proxy_asr", "rule_accuracy", "rule_images",
)  # fmt: skip
Row = dict[str, float | None]  # column → value, None if not measured at that step


def write(folder: Path, moments: Sequence[Moment], eval_set: EvalSet, checks: Sequence[StopCheck] = ()) -> None:
    """Write a row for each step at which something was measured. eval_set: what the moments were measured on."""
    counts: dict[str, float | None] = {"images": len(eval_set.images)}
    if eval_set.triggered is not None:
        counts["triggered"] = len(eval_set.triggered)
    rows: dict[int, Row] = {}
    for moment in moments:
        s = moment.scores
        values = {"acc": s.acc, "asr": s.asr, "ra": s.ra, "proxy_asr": moment.proxy_asr}
        rows.setdefault(moment.step, {}).update(values | counts)
    for check in checks:
        rows.setdefault(check.step, {}).update(rule_accuracy=check.accuracy, rule_images=check.images)
    with (folder / PROGRESS).open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({"step": step, **rows[step]} for step in sorted(rows))


def read(file: Path) -> list[Row]:
    """Read the rows."""
    with file.open(newline="") as lines:
        return [{name: float(value) if value else None for name, value in row.items()} for row in csv.DictReader(lines)]
