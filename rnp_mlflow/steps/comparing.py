"""The comparison of prune runs as files: the table, the curves, links."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from mlflow.entities import Run

from rnp_mlflow.artifacts import table
from rnp_mlflow.config.compare import SUBJECT
from rnp_mlflow.errors import LineageError
from rnp_mlflow.report import comparison, overlay
from rnp_mlflow.report.page import inlined
from rnp_mlflow.steps.progress import note
from rnp_mlflow.tracking import finished, lineage, ui

DRAWN, LINKED = 40, 30  # runs, at most
CURVES = "curves.png"


def write(folder: Path, found: finished.Found, by: Sequence[str]) -> tuple[pd.DataFrame, comparison.Comparison]:
    """Write the table and the curves of these runs; return the table with its numbers, and what the page shows.

    by: names of tags or of parameters; the runs of a group have the same values of these.
    """
    runs = found.runs
    summary = comparison.summarise(pd.DataFrame([finished.row(run, by, SUBJECT) for run in runs]), by)
    picture = folder / CURVES
    with note("drawing"):
        draw(picture, runs[:DRAWN], by, len(runs))
    page = comparison.Comparison(
        f"{len(runs)} prune runs, by {', '.join(by)}", notes(found), links(found), comparison.cells(summary, by)
    )
    comparison.write(folder, summary, page, inlined(picture.with_suffix(".svg")) if picture.exists() else None)
    return summary, page


def notes(found: finished.Found) -> list[str]:
    """Say what the figures are, and which runs are left out."""
    left_out = {
        "unfinished or failed": found.unfinished,
        "without figures": found.lacking,
        "older, of the same inputs": found.repeated,
    }
    counts = ", ".join(f"{count} {why}" for why, count in left_out.items() if count)
    return [
        "mean ± standard deviation over runs; n: runs of the group",
        f"runs left out: {counts or 'none'}",
    ]


def links(found: finished.Found) -> list[tuple[str, str]]:
    """Return links to MLflow's pages that compare the newest runs."""
    run_ids = [run.info.run_id for run in found.runs[:LINKED]]
    which = f"{len(run_ids)} runs" if len(run_ids) == len(found.runs) else f"the newest {len(run_ids)} runs"
    metrics = [name for name in ("curve/acc", "curve/asr") if name in found.runs[0].data.metrics]
    pages = [(f"compare {which}", ui.compare_url(ui.base(), found.experiment_id, run_ids))]
    if metrics:
        pages.append((f"curves of {which}", ui.curves_url(ui.base(), found.experiment_id, run_ids, metrics)))
    return pages


def draw(file: Path, runs: Sequence[Run], by: Sequence[str], count: int) -> None:
    """Draw the curves of these runs, as far as they have any."""
    groups: dict[str, list[overlay.RunCurve]] = {}
    for run in runs:
        try:
            rows = list(csv.DictReader(lineage.fetch(run.info.run_id, table.CURVE).open()))
        except LineageError:
            continue
        name = " · ".join(str(finished.row(run, by, SUBJECT)[word]) for word in by)
        known = {figure: [float(row[figure]) for row in rows] for figure in overlay.NAMES if rows[0][figure]}
        chosen = int(run.data.metrics.get("pruned", 0))
        groups.setdefault(name, []).append(overlay.RunCurve([int(row["pruned"]) for row in rows], known, chosen))
    if groups:
        drawn = sum(map(len, groups.values()))
        which = f"{drawn} runs" if drawn == count else f"the newest {drawn} of {count} runs"
        overlay.draw_overlay(file, dict(sorted(groups.items())), f"Pruning curves of {which}; the axis is logarithmic "
                             "from 10 neurons on. Markers: the chosen point.")  # fmt: skip
