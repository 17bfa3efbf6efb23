"""Entry point `upload`: store the files of a finished step that the tracking store did not take."""

from pathlib import Path
from typing import Any

from rnp_mlflow.config import Upload, parse
from rnp_mlflow.errors import LineageError
from rnp_mlflow.steps import output
from rnp_mlflow.tracking import abandoned, kept, lineage
from rnp_mlflow.tracking.runs import prepare_store


def store_kept(values: dict[str, Any]) -> None:
    """Store the files of `folder` in the run that made them, mark it FINISHED, and remove the folder.

    Raises:
        LineageError: it is not a folder that a step kept, a file in it was changed, or the run cannot take it.
    """
    folder = Path(parse(Upload, values).folder)
    prepare_store()
    record = kept.read(folder)
    run_id = record.run_id
    run = lineage.get(run_id)
    if lineage.tag(run, "entry") != record.entry or run.info.lifecycle_stage != "active":
        raise LineageError(f"run {run_id} is not the run of {record.entry} that made folder={folder}, or was deleted")
    if run.info.status == "FINISHED":
        raise LineageError(f"run {run_id} is FINISHED: it has its files; remove folder={folder}")
    if run.info.status == "RUNNING" and not abandoned.is_dead(run.data.tags.get(abandoned.TAG, "")):
        raise LineageError(f"run {run_id} is RUNNING: its process may still store the files of folder={folder}")
    kept.upload(folder, record)
    content = {"entry": "upload", "run_id": run_id, "run_entry": record.entry}
    line = f"{record.entry} run {run_id} has its files and is FINISHED"
    output.keep(output.Result(content, [line], lambda width, verbose: [line, *unregistered(run.data.params)]))


def unregistered(params: dict[str, str]) -> list[str]:
    """Return a line if the step was to register its model: that comes after its files."""
    name = params.get("register_as", "none")
    return [] if name == "none" else [f"  no version of {name} was registered: run the step again for it"]
