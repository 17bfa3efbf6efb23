"""The artifacts of finished runs: fetched, and held to what the run wrote."""

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from rnp_mlflow.artifacts import manifest, table
from rnp_mlflow.artifacts.manifest import MANIFEST, file_digest
from rnp_mlflow.errors import LineageError
from rnp_mlflow.tracking.runs import PREFIX

# Metrics that tell of a run made before there were manifests that it left an optional file.
EVIDENCE = {table.VERDICT: "verdict/target", table.PROXY: "verdict/proxy_norm"}
Listed = dict[str, str | None]  # path → SHA-256 (hex), None if it is not known


@lru_cache
def scratch() -> tempfile.TemporaryDirectory[str]:
    """Where this process keeps what it fetched; removed when it ends."""
    return tempfile.TemporaryDirectory(prefix="rnp-fetched-")


def download(run_id: str, path: str) -> Path:
    """An artifact, or a folder of them, as a local copy that lives as long as this process; not checked.

    Raises:
        LineageError: it is not there or cannot be read.
    """
    try:
        place = Path(scratch().name, run_id)
        place.mkdir(exist_ok=True)
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, dst_path=str(place)))
    except (mlflow.MlflowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise LineageError(f"artifact {path} of run {run_id} cannot be read: {reason}") from None


def left_by(run: Run) -> Listed:
    """The files of the table that a run left, each with its SHA-256 (hex); None in a run made before manifests.

    Raises:
        LineageError: the run's manifest is lost, or it was changed.
    """
    digest = run.data.tags.get(PREFIX + "manifest")
    if digest is None:
        return dict.fromkeys(_left_before_manifests(run))
    return dict(_manifest(run.info.run_id, digest))


@lru_cache
def _manifest(run_id: str, digest: str) -> manifest.Manifest:
    try:
        return manifest.read(download(run_id, MANIFEST), digest)
    except ValueError as error:
        raise LineageError(f"artifact {MANIFEST} of run {run_id} was changed: {error}; make that run again") from None


def _left_before_manifests(run: Run) -> list[str]:
    """What such a run left: every required file, and the optional ones that its metrics or its own files speak of."""
    artifacts = table.ARTIFACTS[run.data.tags[PREFIX + "entry"]]
    found = [artifact.path for artifact in artifacts if not artifact.optional]
    told = {path for path, name in EVIDENCE.items() if name in run.data.metrics}
    if table.POISON_PLAN in found:
        told.add(json.loads(download(run.info.run_id, table.POISON_PLAN).read_text())["triggered"])
    return found + [artifact.path for artifact in artifacts if artifact.optional and artifact.path in told]


def fault(run: Run) -> str | None:
    """What is wrong with a run's artifacts, in words: the first that is lost or not what the run wrote."""
    _manifest.cache_clear()
    try:
        for path, digest in left_by(run).items():
            _checked(run.info.run_id, path, {path: digest})
    except LineageError as error:
        return str(error)
    return None


def fetch(run: Run, path: str) -> Path:
    """A file of a run, or a folder of them, as `download` gives it; what the run listed is held to its SHA-256.

    Raises:
        LineageError: it is lost, it cannot be read, or it is not what the run wrote.
    """
    listed = {name: sha for name, sha in left_by(run).items() if name == path or name.startswith(f"{path}/")}
    return _checked(run.info.run_id, path, listed)


def _checked(run_id: str, path: str, listed: Listed) -> Path:
    """The artifact `path`, which holds the files of `listed`."""
    if listed and not _is_there(run_id, path):
        raise LineageError(f"run {run_id} no longer has its artifact {path}; make that run again")
    place = download(run_id, path)
    for name, digest in listed.items():
        file = place if name == path else place / name.removeprefix(f"{path}/")
        if not file.is_file():
            raise LineageError(f"run {run_id} no longer has its artifact {name}; make that run again")
        if digest is not None and file_digest(file) != digest:
            raise LineageError(f"artifact {name} of run {run_id} is not what the run wrote; make that run again")
    return place


def _is_there(run_id: str, path: str) -> bool:
    folder = path.rpartition("/")[0]
    return any(item.path == path for item in MlflowClient().list_artifacts(run_id, folder or None))


def settings_of(run: Run) -> dict[str, Any]:
    """What a run was made from: `{"entry", "settings": {step: {name: value}}, …}`.

    Raises:
        LineageError: its record is lost or broken.
    """
    try:
        return json.loads(fetch(run, table.SETTINGS).read_text())
    except ValueError as error:
        raise LineageError(f"{table.SETTINGS} of run {run.info.run_id} is broken: {error}") from None
