"""Finished work that the store did not take: it stays in a folder of its own, from which `upload` stores it later."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from rnp_mlflow.artifacts import manifest
from rnp_mlflow.artifacts.stored import as_type, read_json
from rnp_mlflow.errors import LineageError
from rnp_mlflow.loading import regular, room
from rnp_mlflow.tracking import location, store

PREFIX, RECORD, FILES = "rnp_kept-", "kept.json", "files"  # no prefix of `scratch`, whose folders the next call removes
ROOM = 32 << 20  # bytes that must be free for the files of a step
LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """What is left to do. tags: whole names → values, as the run gets them once the files are stored."""

    run_id: str
    entry: str
    tags: Mapping[str, str]


def keep(folder: Path, record: Record, reason: str) -> LineageError:
    """Move the files of a finished step where nothing removes them; return the error that says where.

    reason: why the store did not take them.
    """
    place = Path(tempfile.gettempdir(), PREFIX + record.run_id)
    place.mkdir(mode=0o700)
    folder.rename(place / FILES)
    with suppress(OSError):  # the disk may be full, and the files count
        Path(place, RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n")
    return LineageError(
        f"the work of run {record.run_id} is done, but its files cannot be stored: {reason}; they are kept: when the "
        f"store is back, run: python -m rnp_mlflow upload --folder {place}"
    )


def read(folder: Path) -> Record:
    """Read what is left to do of a kept folder, and hold its files to their manifest.

    Raises:
        LineageError: it is not such a folder, or a file is lost or was changed.
    """
    file = folder / RECORD
    try:
        regular.check_regular(file, LineageError)
    except LineageError as error:
        raise LineageError(f"folder={folder} is not a folder that a step kept: {error}") from None
    if folder.stat().st_uid != os.getuid() or any(place.is_symlink() for place in (folder, *folder.rglob("*"))):
        raise LineageError(f"folder={folder}: it is another person's, or has a link in it")
    record = as_type(Record, read_json(file), file)
    try:
        files = manifest.read(folder / FILES / manifest.MANIFEST, record.tags.get("rnp.manifest", ""))
        for name in files:
            regular.check_regular(folder / FILES / name, LineageError)
        wrong = [name for name, digest in files.items() if manifest.file_digest(folder / FILES / name) != digest]
    except (OSError, ValueError) as error:
        raise LineageError(f"folder={folder}: {manifest.MANIFEST}, or a file that it names, is lost: {error}") from None
    if wrong:
        raise LineageError(f"folder={folder}: {wrong[0]} is not what the run wrote")
    return record


def upload(folder: Path, record: Record) -> None:
    """Store the files of a kept folder in their run, mark the run FINISHED, and remove the folder."""
    client = store.client()
    store.whole(mlflow.log_artifacts)(str(folder / FILES), run_id=record.run_id)
    client.log_batch(record.run_id, tags=[mlflow.entities.RunTag(*tag) for tag in record.tags.items()])
    client.set_terminated(record.run_id, "FINISHED")
    if "rnp.error" in client.get_run(record.run_id).data.tags:
        client.delete_tag(record.run_id, "rnp.error")
    shutil.rmtree(folder)


def check_room(folder: Path, artifact_uri: str) -> None:
    """Refuse to work if the results could not be written: here, or where the store keeps artifacts.

    Raises:
        LineageError: the disk is full, or the store's place of artifacts cannot be written to.
    """
    room.check_disk(ROOM, str(folder), "the files of a step", LineageError)
    probe = folder / ".writable"
    probe.write_bytes(bytes(1 << 16))
    try:
        repository = get_artifact_repository(artifact_uri)
        with store.at_once():
            store.whole(repository.log_artifact)(str(probe))
    except (OSError, mlflow.MlflowException, LineageError) as error:
        place = location.shown(artifact_uri)
        raise LineageError(f"artifacts cannot be written to {place}: {location.reason(error)}") from None
    finally:
        probe.unlink()
    with suppress(Exception):  # not every store can
        repository.delete_artifacts(probe.name)
