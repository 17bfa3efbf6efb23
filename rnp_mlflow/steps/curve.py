"""The pruning curve and its summary, as files and as metrics."""

import csv
import json
from typing import Any

from rnp_mlflow.artifacts import table
from rnp_mlflow.core.curve import CurvePoint
from rnp_mlflow.steps.summary import PruneSummary
from rnp_mlflow.tracking.runs import StepRun

FIGURES = ("acc", "asr", "ra", "der")


def values(point: CurvePoint, axis: str) -> dict[str, Any]:
    """Return the columns of pruning_curve.csv."""
    s = point.scores
    trigger_free = {"val_acc": point.holdout_acc, "proxy_asr": point.proxy_asr}
    return {axis: point.cutoff, "pruned": point.num_pruned, "acc": s.acc, "asr": s.asr, "ra": s.ra} | trigger_free


def step_of(point: CurvePoint) -> int:
    """Return the integer step of its metrics: round(1000 × threshold), the number, or -1 if unpruned."""
    if point.cutoff is None:
        return -1
    return round(1000 * point.cutoff) if isinstance(point.cutoff, float) else point.cutoff


def write(run: StepRun, points: list[CurvePoint], summary: PruneSummary, *, model_id: str) -> None:
    """Write the curve as csv and metrics; the summary as json and metrics, linked to the logged model."""
    axis = summary.pruning_by
    lines = [values(point, axis) for point in points]
    with (run.folder / table.CURVE).open("w", newline="") as out:
        writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    (run.folder / table.SUMMARY).write_text(json.dumps(summary.to_json(), indent=2) + "\n")
    log_figures(run, summary, model_id)  # first: the page of a run shows metrics in the order in which they were logged
    log_curve(run, points)


def log_curve(run: StepRun, points: list[CurvePoint]) -> None:
    """Log `curve/…` metrics over integer steps."""
    history: list[tuple[str, float | None, int]] = []
    step = -2
    for point in points:
        step = max(step + 1, step_of(point))  # a refined point may lie within a thousandth of another
        names = {"acc": point.scores.acc, "asr": point.scores.asr, "ra": point.scores.ra}
        names |= {"val_acc": point.holdout_acc, "proxy_asr": point.proxy_asr}
        names["pruned"] = point.num_pruned
        history += [(f"curve/{name}", value, step) for name, value in names.items()]
    run.history(history)


def log_figures(run: StepRun, summary: PruneSummary, model_id: str | None = None) -> None:
    """Log the results: at the selected point, and before pruning. Those of other points are in the summary alone."""
    content = summary.to_json()
    before, picked = content["before"], content["points"][summary.selected]
    run.metrics({name: picked[name] for name in FIGURES}, model_id=model_id)
    run.metrics({f"{name}_before": before[name] for name in FIGURES if name in before})
    run.metrics({"pruned": picked["pruned"], "val_acc": picked["val_acc"], "val_acc_before": before["val_acc"]})
    if summary.verdict is not None:
        shown = ("benign_score", "target_share", "forgetting_rate")
        run.metrics({f"verdict/{name}": getattr(summary.verdict, name) for name in shown})
