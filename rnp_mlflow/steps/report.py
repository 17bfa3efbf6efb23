"""Entry point `report`: compare finished prune runs in one table and one picture."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Run

from rnp_mlflow.artifacts import table
from rnp_mlflow.config import Compare, parse, text
from rnp_mlflow.config.compare import SUBJECT
from rnp_mlflow.errors import ConfigError, LineageError
from rnp_mlflow.report import comparison, overlay
from rnp_mlflow.report.page import inlined
from rnp_mlflow.steps import grid_table, output
from rnp_mlflow.steps.output import Result
from rnp_mlflow.steps.progress import note
from rnp_mlflow.tracking import contents, finished, lineage, ui
from rnp_mlflow.tracking.runs import StepRun, prepare_store, step_run

DRAWN, LINKED = 40, 30  # runs, at most
NARROW = ("acc_before", "acc_lost", "asr", "der")  # figures for a terminal that is too narrow for all
CURVES = "curves.png"


def compare(values: dict[str, Any]) -> str:
    """Compare the runs that the parameters name; return the ID of the run that gets the files.

    Raises:
        ConfigError: `output` cannot be written.
        LineageError: there are no such runs.
    """
    settings = parse(Compare, values)
    prepare_store()
    folder = Path(settings.output) if settings.output else None
    if folder:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"output={folder}: {error.strerror}") from None
    found = finished.find(settings.experiment, settings.filter, cells_of(settings.grid))
    runs, by = found.runs, settings.groups
    summary = comparison.summarise(pd.DataFrame([finished.row(run, by, SUBJECT) for run in runs]), by)
    with step_run("report", experiment_id=found.experiment_id) as run:
        run.params({name: text(value) for name, value in settings})
        run.name(f"report · {len(runs)} runs")
        with note("drawing"):
            draw(run.folder / CURVES, runs[:DRAWN], by, len(runs))
        page = comparison.Comparison(
            f"{len(runs)} prune runs, by {', '.join(by)}", notes(found), links(found), comparison.cells(summary, by)
        )
        picture = run.folder / CURVES
        comparison.write(run.folder, summary, page, inlined(picture.with_suffix(".svg")) if picture.exists() else None)
        run.describe("\n".join(comparison.markdown(page.shown)))
        if folder:
            shutil.copytree(run.folder, folder, dirs_exist_ok=True)
        output.keep(result(run, summary, by, page))
    return run.run_id


def cells_of(grid_id: str | None) -> list[str] | None:
    """Return the runs of a grid's cells, those among them that it found and did not make, too; None without a grid.

    Raises:
        LineageError: it is not the run of a grid that has ended, or its table was changed.
    """
    if grid_id is None:
        return None
    if lineage.tag(lineage.get(grid_id), "entry") != "grid":
        raise LineageError(f"grid={grid_id} is not the run of a grid")
    return grid_table.run_ids(contents.download(grid_id, table.CELLS))


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


def result(run: StepRun, summary: pd.DataFrame, by: Sequence[str], page: comparison.Comparison) -> Result:
    """Return what to print."""
    groups = json.loads(summary.to_json(orient="records"))
    content = {"entry": "report", "run_id": run.run_id, "group_by": list(by), "groups": groups}

    def lines(width: int, verbose: bool) -> list[str]:
        wide = comparison.markdown(page.shown)
        narrow = comparison.markdown(comparison.cells(summary, by, NARROW))
        shown = wide if verbose or len(wide[0]) <= width else narrow
        return [
            f"report run {run.run_id}", *shown, *page.notes, *(f"  {words}: {address}" for words, address in page.links)
        ]  # fmt: skip

    return Result(content, [f"report run {run.run_id}", *comparison.markdown(page.shown)], lines)
