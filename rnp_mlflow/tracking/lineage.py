"""Finding runs by what went into them, and holding a run ID to what it is used for."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from rnp_mlflow.errors import LineageError
from rnp_mlflow.tracking.runs import PREFIX

SETTINGS = "settings.json"

MODEL = ("model/model.safetensors", "model/model.json", "data.json", "poison_plan.json", SETTINGS)
MODEL_RUNS = ("attack", "import")  # runs that hold a suspect model and its data

# entry → the artifacts that whoever reads such a run relies on.
NEEDED = {
    "attack": MODEL,
    "import": MODEL,
    "unlearn": ("unlearned_model/model.safetensors", "defence_index.txt", "holdout_index.txt", SETTINGS),
    "recover": ("mask_values.csv", SETTINGS),
    "prune": ("pruning_curve.csv", "purified_model/model.safetensors", "summary.json", SETTINGS),
    "main": ("summary.json", SETTINGS),
}


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a mapping as canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(*files: Path) -> str:
    """SHA-256 (hex) of the files' bytes, one after another."""
    sha = hashlib.sha256()
    for file in files:
        sha.update(hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()


@lru_cache
def code_digest() -> str:
    """SHA-256 (hex) of this package's sources and of the versions that decide its numbers.

    Not the git commit: it misses changes in a dirty tree, and an installed package has none.
    """
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    return digest({"code": file_digest(*sources), "torch": version("torch"), "numpy": version("numpy")})


def tag(run: Run, name: str) -> str | None:
    """A tag of ours."""
    return run.data.tags.get(PREFIX + name)


def find_finished(entry: str, inputs: str) -> str | None:
    """The newest finished run of this experiment with these inputs whose artifacts are there."""
    active = mlflow.active_run()
    if active is None:
        return None
    rule = f"tags.`{PREFIX}inputs` = '{inputs}' and tags.`{PREFIX}entry` = '{entry}' and status = 'FINISHED'"
    runs = MlflowClient().search_runs([active.info.experiment_id], rule, max_results=10, order_by=["start_time DESC"])
    return next((run.info.run_id for run in runs if not missing(run.info.run_id, entry)), None)


def has(run_id: str, path: str) -> bool:
    """Whether a run has this artifact, a file or folder at its top."""
    return any(item.path == path for item in MlflowClient().list_artifacts(run_id))


def missing(run_id: str, entry: str) -> str | None:
    """The first artifact that a run of this entry should have and has not."""
    client, listed = MlflowClient(), {}
    for path in NEEDED[entry]:
        folder = path.rpartition("/")[0]
        if folder not in listed:
            listed[folder] = {item.path for item in client.list_artifacts(run_id, folder or None)}
        if path not in listed[folder]:
            return path
    return None


def get(run_id: str) -> Run:
    """A run by ID.

    Raises:
        LineageError: the store has no such run.
    """
    try:
        return MlflowClient().get_run(run_id)
    except mlflow.MlflowException as error:
        reason = "" if "not found" in str(error).lower() else f" ({str(error).splitlines()[0][:120]})"
        raise LineageError(f"there is no run {run_id} in {mlflow.get_tracking_uri()}{reason}") from None


def require(run_id: str, *entries: str) -> Run:
    """A finished run of one of these kinds with all its artifacts.

    Raises:
        LineageError: unknown, of another kind, unfinished, or an artifact is gone.
    """
    run = get(run_id)
    entry = tag(run, "entry")
    if entry not in entries:
        kind = f"is of kind {entry!r}" if entry else "is not a run of this project"
        raise LineageError(f"run {run_id} {kind}; give the ID of a run of kind {' or '.join(entries)}")
    if run.info.status != "FINISHED":
        raise LineageError(f"run {run_id} ({entry}) is {run.info.status}, not FINISHED; give a finished run")
    if gone := missing(run_id, entry):
        raise LineageError(f"run {run_id} ({entry}) no longer has its artifact {gone}; make that run again")
    return run


@lru_cache
def scratch() -> tempfile.TemporaryDirectory[str]:
    """Where this process keeps what it fetched; removed when it ends."""
    return tempfile.TemporaryDirectory(prefix="rnp-fetched-")


def fetch(run_id: str, path: str) -> Path:
    """An artifact, or a folder of them, as a local copy that lives as long as this process.

    Raises:
        LineageError: it is not there or cannot be read.
    """
    try:
        place = Path(scratch().name, run_id)
        place.mkdir(exist_ok=True)
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, dst_path=str(place)))
    except (mlflow.MlflowException, OSError) as error:
        reason = str(error).splitlines()[0][:160]
        raise LineageError(f"artifact {path} of run {run_id} cannot be read: {reason}") from None


def settings_of(run_id: str) -> dict[str, Any]:
    """What a run was made from: `{"entry", "settings": {step: {name: value}}, …}`."""
    try:
        return json.loads(fetch(run_id, SETTINGS).read_text())
    except ValueError as error:
        raise LineageError(f"{SETTINGS} of run {run_id} is broken: {error}") from None
