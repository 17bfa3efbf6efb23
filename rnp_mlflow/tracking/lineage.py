"""Find runs by their inputs, and check that a run ID is suitable for its use."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run

from rnp_mlflow.artifacts.manifest import file_digest
from rnp_mlflow.errors import LineageError
from rnp_mlflow.tracking import contents, location, store, views
from rnp_mlflow.tracking.runs import PARENT, PREFIX

FILE = "file."  # the tag of a file's SHA-256 ends with the parameter that names it
UNFINISHED, TAKEN_BY = "main", "taken_by"
_finished: dict[str, Run] = {}  # what the store has said of finished runs since `forget`
MODEL_RUNS = ("attack", "import")  # entry points whose runs have a suspect model and its data


def digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of a mapping as canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@lru_cache
def code_digest() -> str:
    """Return the SHA-256 (hex) of this package's sources and of the versions that determine its figures.

    The git commit is not enough: it misses changes in a dirty tree, and an installed package has none.
    """
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    versions = {name: version(name) for name in ("torch", "torchvision", "numpy")}
    return digest({"code": [file_digest(file) for file in sources]} | versions)


def tag(run: Run, name: str) -> str | None:
    """Return the value of one of our tags, None if it is not set."""
    found: str | None = run.data.tags.get(PREFIX + name)
    return found


def find_finished(entry: str, inputs: str, by: str | None = None) -> str | None:
    """Return the newest finished run with these inputs and intact artifacts, None if none (`views.searched`).

    by: only if it is a child of a run of this entry point that did not finish, and no finished one has taken it since.
    """
    active = mlflow.active_run()
    if active is None:
        return None
    rule = f"tags.`{PREFIX}inputs` = '{inputs}' and tags.`{PREFIX}entry` = '{entry}' and status = 'FINISHED'"
    experiments = views.searched(active.info.experiment_id)
    runs = store.client().search_runs(experiments, rule, max_results=10, order_by=["start_time DESC"])
    wanted = (run for run in runs if by is None or _is_left(run, by))
    return next((run.info.run_id for run in wanted if not contents.find_fault(run)), None)


def _is_left(run: Run, by: str) -> bool:
    """Whether a run's parent is of the entry point `by` and did not finish, nor did one that took the run since."""
    parent, taker = _known(run.data.tags.get(PARENT)), _known(tag(run, TAKEN_BY))
    ended = {owner.info.status for owner in (parent, taker) if owner}
    return parent is not None and tag(parent, "entry") == by and ended <= {"FAILED", "KILLED"}


def _known(run_id: str | None) -> Run | None:
    with suppress(LineageError):
        return get(run_id) if run_id else None
    return None


def take(run_id: str) -> None:
    """Note that the active run, once it is finished, has taken a run (`find_finished`)."""
    active = mlflow.active_run()
    if active is not None:
        store.client().set_tag(run_id, PREFIX + TAKEN_BY, active.info.run_id)


def get(run_id: str) -> Run:
    """Return a run by ID.

    Raises:
        LineageError: the store has no such run.
    """
    contents.check_run_id(run_id)
    if run_id in _finished:
        return _finished[run_id]
    try:
        run = store.client().get_run(run_id)
    except mlflow.MlflowException as error:
        absent = "not found" in str(error).lower()
        reason = (
            "; if another store has it, name that in MLFLOW_TRACKING_URI"
            if absent
            else (f" ({str(error).splitlines()[0][:120]})")
        )
        raise LineageError(f"there is no run {run_id} in {location.shown()}{reason}") from None
    if run.info.status == "FINISHED":
        _finished[run_id] = run
    return run


def forget() -> None:
    """Ask the store again from now on: a new call begins."""
    _finished.clear()
    contents.forget()


def require(run_id: str, *entries: str) -> Run:
    """Return a finished run of one of these kinds with intact artifacts.

    Raises:
        LineageError: the run is unknown, of another kind, unfinished or deleted, or an artifact is lost or changed.
    """
    run = get(run_id)
    entry = tag(run, "entry")
    if entry not in entries:
        kind = f"is of kind {entry!r}" if entry else "is not a run of this project"
        raise LineageError(f"run {run_id} {kind}; give the ID of a run of kind {' or '.join(entries)}")
    if run.info.status != "FINISHED":
        raise LineageError(f"run {run_id} ({entry}) is {run.info.status}, not FINISHED; give a finished run")
    if run.info.lifecycle_stage != "active":
        raise LineageError(f"run {run_id} ({entry}) was deleted; restore it in the UI, or give another run")
    if wrong := contents.find_fault(run):
        raise LineageError(wrong)
    return run


def has_artifact(run_id: str, path: str) -> bool:
    """Whether a run left this file of the table, even if the file was lost later."""
    return path in contents.listed_artifacts(get(run_id))


def fetch(run_id: str, path: str) -> Path:
    """Download and verify a run's artifact, a file or a folder (`contents.fetch`).

    Raises:
        LineageError: the artifact is lost, cannot be read, or is not what the run wrote.
    """
    return contents.fetch(get(run_id), path)


def settings_of(run_id: str) -> dict[str, Any]:
    """Return a run's recorded settings (`contents.settings_of`)."""
    return contents.settings_of(get(run_id))


def output_of(run_id: str) -> str:
    """Return a digest of everything that later steps read from a run.

    For a run made before manifests existed, return its ID: its digest omits the images and their normalisation.
    """
    run = get(run_id)
    return tag(run, "output") or run_id if tag(run, "manifest") else run_id
