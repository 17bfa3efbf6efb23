"""The pruning curve and its summary: as files, as metrics, and as words."""

import csv
import json
from dataclasses import dataclass
from typing import Any

import mlflow
from rich.console import Console
from rich.table import Table

from rnp_mlflow.core.evaluate import Scores
from rnp_mlflow.tracking import figures, ui
from rnp_mlflow.tracking.runs import StepRun

CSV, SUMMARY = "pruning_curve.csv", "summary.json"
MEANING = {
    "chosen": "without trigger: last point that keeps held-out accuracy",
    "fixed": "at pruning_number",
    "oracle": "best DER in hindsight, with the trigger",
}
FIGURES = ("acc", "asr", "ra", "der")


@dataclass(frozen=True)
class Row:
    """One point: where (None: unpruned), neurons pruned, test scores, held-out clean accuracy."""

    at: float | int | None
    pruned: int
    scores: Scores
    val_acc: float

    def values(self, axis: str) -> dict[str, Any]:
        """The columns of pruning_curve.csv."""
        s = self.scores
        return {axis: self.at, "pruned": self.pruned, "acc": s.acc, "asr": s.asr, "ra": s.ra, "val_acc": self.val_acc}

    @property
    def step(self) -> int:
        """The integer step of its metrics: round(1000 × threshold), the number, or -1 if unpruned."""
        if self.at is None:
            return -1
        return round(1000 * self.at) if isinstance(self.at, float) else self.at


def write(run: StepRun, rows: list[Row], summary: dict[str, Any], title: str) -> None:
    """Curve as csv, png, html and metrics; summary as json and metrics."""
    axis, picked = summary["pruning_by"], summary["points"][summary["selected"]]
    table = [row.values(axis) for row in rows]
    with (run.folder / CSV).open("w", newline="") as out:
        writer = csv.DictWriter(out, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    (run.folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    chosen = {"at": picked[axis], "pruned": picked["pruned"]}
    figures.curve_png(run.folder / "pruning_curve.png", table, axis, chosen, title)
    figures.curve_html(run.folder / "pruning_curve.html", table, axis, chosen, title)
    log_curve(run, rows)
    log_figures(run, summary)


def log_curve(run: StepRun, rows: list[Row]) -> None:
    """`curve/…` metrics over integer steps; the threshold itself beside them."""
    history = []
    for row in rows:
        names = {"acc": row.scores.acc, "asr": row.scores.asr, "ra": row.scores.ra}
        names |= {"val_acc": row.val_acc, "pruned": row.pruned, "at": row.at}
        history += [(f"curve/{name}", value, row.step) for name, value in names.items()]
    run.history(history)


def log_figures(run: StepRun, summary: dict[str, Any]) -> None:
    """The figures before and at the selected point, under the names that others rely on."""
    picked = summary["points"][summary["selected"]]
    run.metrics({f"{name}_before": value for name, value in summary["before"].items()})
    run.metrics({name: picked[name] for name in (*FIGURES, "pruned", "val_acc")})
    for name, point in summary["points"].items():
        run.metrics({f"{name}/{key}": point[key] for key in (*FIGURES, "pruned")})


def tell(run_id: str, summary: dict[str, Any]) -> None:
    """The result as a table on standard output, and where to look."""
    table = Table(title=f"prune run {run_id}", title_justify="left")
    for column in ("point", summary["pruning_by"], "neurons", "ACC", "ASR", "RA", "DER"):
        table.add_column(column, justify="left" if column == "point" else "right")
    before = summary["before"]
    table.add_row("before", "", "0", *(shown(before[name]) for name in ("acc", "asr", "ra")), "")
    for name, point in summary["points"].items():
        mark = " ◀ purified model" if name == summary["selected"] else ""
        at = point[summary["pruning_by"]]
        figures_ = (shown(point[key]) for key in FIGURES)
        table.add_row(f"{name}{mark}", "none" if at is None else f"{at:g}", str(point["pruned"]), *figures_)
    console = Console(width=100)
    console.print(table)
    for name in summary["points"]:
        console.print(f"  {name}: {MEANING[name]}", highlight=False)
    experiment = mlflow.get_run(run_id).info.experiment_id
    for line in ui.where(experiment, [run_id]):
        console.print(line, highlight=False, soft_wrap=True)


def shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
