"""A run's manifest: which files of the table it left, and the SHA-256 of each.

A file that is in the manifest but absent was lost; a file that is not in it was never written. The SHA-256 of the
manifest itself is a tag of the run.
"""

import hashlib
import json
from pathlib import Path, PurePosixPath

from rnp_mlflow.artifacts.stored import as_type, read_json
from rnp_mlflow.artifacts.table import ARTIFACTS

MANIFEST = "manifest.json"
Manifest = dict[str, str]  # path → SHA-256 (hex)


def file_digest(file: Path) -> str:
    """Return the SHA-256 (hex) of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of(folder: Path, entry: str) -> Manifest:
    """Return the manifest of `folder`: the files of the table that a run of this entry point left there.

    Raises:
        FileNotFoundError: a required file is missing.
    """
    digests = {}
    for artifact in ARTIFACTS[entry]:
        if not artifact.optional or (folder / artifact.path).is_file():
            digests[artifact.path] = file_digest(folder / artifact.path)
    return digests


def write(folder: Path, entry: str) -> str:
    """Write the manifest of `folder` into it, and return the manifest's own SHA-256."""
    (folder / MANIFEST).write_text(json.dumps(of(folder, entry), indent=2) + "\n")
    return file_digest(folder / MANIFEST)


def read(file: Path, digest: str) -> Manifest:
    """Read a manifest whose SHA-256 must be `digest`.

    Raises:
        ValueError: the digest differs, or the file does not map paths below the run's folder to digests.
        LineageError: it is not JSON.
    """
    if file_digest(file) != digest:
        raise ValueError("it is not what the run wrote")
    content = as_type(Manifest, read_json(file), file)
    if any(".." in (path := PurePosixPath(name)).parts or path.is_absolute() for name in content):
        raise ValueError("it names a path outside of the run's folder")
    return content
