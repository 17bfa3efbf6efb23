"""A run's manifest: which files of the table it left, and the SHA-256 of each.

What is not in it was never there, so a file that is absent later was lost. The manifest's own SHA-256 is a tag of
the run.
"""

import hashlib
import json
from pathlib import Path

from rnp_mlflow.artifacts.table import ARTIFACTS

MANIFEST = "manifest.json"
Manifest = dict[str, str]  # path → SHA-256 (hex)


def file_digest(file: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of(folder: Path, entry: str) -> Manifest:
    """The files of the table that a run of this entry point left in `folder`.

    Raises:
        FileNotFoundError: one that every such run leaves is not there.
    """
    found = {}
    for artifact in ARTIFACTS[entry]:
        if not artifact.optional or (folder / artifact.path).is_file():
            found[artifact.path] = file_digest(folder / artifact.path)
    return found


def write(folder: Path, entry: str) -> str:
    """Write the manifest of `folder` into it; its own SHA-256."""
    (folder / MANIFEST).write_text(json.dumps(of(folder, entry), indent=2) + "\n")
    return file_digest(folder / MANIFEST)


def read(file: Path, digest: str) -> Manifest:
    """A manifest whose SHA-256 is `digest`.

    Raises:
        ValueError: it is another, or it does not map paths to digests.
    """
    if file_digest(file) != digest:
        raise ValueError("it is not what the run wrote")
    found = json.loads(file.read_text())
    if not isinstance(found, dict) or not all(isinstance(part, str) for pair in found.items() for part in pair):
        raise ValueError("it does not map paths to digests")
    return found
