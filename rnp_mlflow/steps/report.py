"""Entry point `report`: compare finished prune runs in one table and one picture."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rnp_mlflow.artifacts import table
from rnp_mlflow.config import Compare, parse, text
from rnp_mlflow.errors import ConfigError, LineageError
from rnp_mlflow.report import comparison
from rnp_mlflow.steps import comparing, grid_table, output
from rnp_mlflow.steps.output import Result
from rnp_mlflow.tracking import contents, finished, lineage
from rnp_mlflow.tracking.runs import StepRun, prepare_store, step_run

NARROW = ("acc_before", "acc_lost", "asr", "der")  # figures for a terminal that is too narrow for all


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
    by = settings.groups
    with step_run("report", experiment_id=found.experiment_id) as run:
        run.params({name: text(value) for name, value in settings})
        run.name(f"report · {len(found.runs)} runs")
        summary, page = comparing.write(run.folder, found, by)
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
    return grid_table.run_ids(contents.download(lineage.get(grid_id), table.CELLS))


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
