"""The artifacts of finished runs: download them, and verify that they are what the run wrote."""

import re
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from rnp_mlflow.artifacts import manifest, poisoning, table
from rnp_mlflow.artifacts.manifest import MANIFEST, file_digest
from rnp_mlflow.artifacts.stored import as_type, read_json
from rnp_mlflow.errors import LineageError
from rnp_mlflow.tracking import scratch, store
from rnp_mlflow.tracking.runs import PREFIX

# Optional file → metric that shows, in a run made before manifests existed, that the run left this file.
METRIC_OF_OPTIONAL = {table.VERDICT: "verdict/target", table.PROXY: "verdict/proxy_norm"}
RUN_ID = re.compile(r"[\w-]{1,64}", re.A)


@dataclass(frozen=True)
class Record:
    """What every run's record says."""

    entry: str
    settings: dict[str, dict[str, Any]]
    upstream: dict[str, str] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)


Digests = dict[str, str | None]  # path → SHA-256 (hex), None if it is not known

_verified: dict[tuple[str, str], Path] = {}  # (run ID, path) → the download that is what the run wrote


@lru_cache
def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Return the folder for this process's downloads; it is removed when the process ends."""
    return scratch.folder()


def download(run: Run, path: str) -> Path:
    """Download an artifact or a folder of them, without verifying it; the copy exists until the process ends.

    Raises:
        LineageError: the artifact is missing or cannot be read, or the run ID is none.
    """
    run_id = run.info.run_id
    check_run_id(run_id)
    try:
        local = Path(scratch_folder().name, run_id)
        local.mkdir(exist_ok=True)
        return Path(store.whole(_repository(run).download_artifacts)(path, str(local)))
    except (mlflow.MlflowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise LineageError(f"artifact {path} of run {run_id} cannot be read: {reason}") from None


def _repository(run: Run) -> ArtifactRepository:
    """Return where a run's artifacts are; `mlflow.artifacts` would ask the store for that each time."""
    return get_artifact_repository(run.info.artifact_uri)


def check_run_id(run_id: str) -> None:
    """Refuse a run ID that is none; the store names others, and they become paths.

    Raises:
        LineageError: it is not of letters, digits, - and _.
    """
    if not RUN_ID.fullmatch(run_id):
        raise LineageError(f"there can be no run {run_id[:80]!r}: an ID has letters and digits")


def forget() -> None:
    """Remove what was downloaded: a process that works on many runs would fill the disk."""
    scratch_folder().cleanup()
    scratch_folder.cache_clear()
    _verified.clear()


def listed_artifacts(run: Run) -> Digests:
    """Return the files of the table that a run left, with their SHA-256 (hex); None for runs made before manifests.

    Raises:
        LineageError: the run's manifest is lost or was changed.
    """
    digest = run.data.tags.get(PREFIX + "manifest")
    if digest is None:
        return dict.fromkeys(_artifacts_before_manifests(run))
    return _manifest(run, digest)


def _manifest(run: Run, digest: str) -> Digests:
    run_id = run.info.run_id
    file = _verified.get((run_id, MANIFEST)) or download(run, MANIFEST)
    try:
        found: Digests = {**manifest.read(file, digest)}
    except ValueError as error:
        raise LineageError(f"artifact {MANIFEST} of run {run_id} was changed: {error}; make that run again") from None
    _verified[run_id, MANIFEST] = file
    return found


def _artifacts_before_manifests(run: Run) -> list[str]:
    """Return every required file, and the optional files that the run's metrics or its poison plan mention."""
    artifacts = table.ARTIFACTS[run.data.tags[PREFIX + "entry"]]
    found = [artifact.path for artifact in artifacts if not artifact.optional]
    recorded = {path for path, name in METRIC_OF_OPTIONAL.items() if name in run.data.metrics}
    if table.POISON_PLAN in found:
        recorded.add(poisoning.read(download(run, table.POISON_PLAN))["triggered"])
    return found + [artifact.path for artifact in artifacts if artifact.optional and artifact.path in recorded]


def find_fault(run: Run) -> str | None:
    """Describe the first artifact of a run that is lost or not what the run wrote; None if all are intact."""
    try:
        for path, digest in listed_artifacts(run).items():
            _verify(run, path, {path: digest})
    except LineageError as error:
        return str(error)
    return None


def fetch(run: Run, path: str) -> Path:
    """Download a file of a run, or a folder of them, and verify every listed file by its SHA-256.

    Raises:
        LineageError: a file is lost, cannot be read, or is not what the run wrote.
    """
    listed = {name: sha for name, sha in listed_artifacts(run).items() if name == path or name.startswith(f"{path}/")}
    return _verify(run, path, listed)


def _verify(run: Run, path: str, listed: Digests) -> Path:
    """Download the artifact `path`, and verify the files in it that are listed; once for each call (`forget`)."""
    run_id = run.info.run_id
    if known := _verified.get((run_id, path)):
        return known
    if listed and not _exists(run, path):
        raise LineageError(f"run {run_id} no longer has its artifact {path}; make that run again")
    local = download(run, path)
    for name, digest in listed.items():
        file = local if name == path else local / name.removeprefix(f"{path}/")
        if not file.is_file():
            raise LineageError(f"run {run_id} no longer has its artifact {name}; make that run again")
        if digest is not None and file_digest(file) != digest:
            raise LineageError(f"artifact {name} of run {run_id} is not what the run wrote; make that run again")
    if listed and None not in listed.values():
        _verified[run_id, path] = local
    return local


def _exists(run: Run, path: str) -> bool:
    folder = path.rpartition("/")[0]
    return any(item.path == path for item in store.whole(_repository(run).list_artifacts)(folder or None))


def settings_of(run: Run) -> dict[str, Any]:
    """Return a run's recorded settings: `{"entry", "settings": {step: {name: value}}, …}`.

    Raises:
        LineageError: the record is lost or broken.
    """
    file = fetch(run, table.SETTINGS)
    found = read_json(file)
    as_type(Record, found, file)
    return found
