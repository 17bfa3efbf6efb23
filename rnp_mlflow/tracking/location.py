"""Where the tracking store is, checked before MLflow tries to open it again and again."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

import mlflow

from rnp_mlflow.errors import LineageError

SQLITE = b"SQLite format 3\0"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite store; None for other stores.

    Raises:
        LineageError: SQLite cannot use it.
    """
    scheme, _, place = uri.partition(":///")
    if not scheme.startswith("sqlite") or not place:
        return None
    file = Path(unquote(place.partition("?")[0])).absolute()
    if reason := _fault(file):
        raise LineageError(f"the tracking store {shown(uri)} cannot be used: {reason}; set MLFLOW_TRACKING_URI")
    return file


def _fault(file: Path) -> str | None:
    """Say why SQLite cannot use a file; None if it can, or can make it."""
    if file.is_dir():
        return "it is a folder, not a file"
    if not file.exists():
        folder = next(place for place in file.parents if place.exists())  # MLflow makes the rest
        return None if folder.is_dir() and os.access(folder, os.W_OK) else f"{folder} cannot be written to"
    if not file.is_file() or not os.access(file, os.R_OK | os.W_OK):
        return "its file cannot be read and written"
    with file.open("rb") as stream:
        start = stream.read(len(SQLITE))
    return None if start in (b"", SQLITE) else "its file is not an SQLite database"


def address() -> str:
    """Return the address of the present store as it is understood in another working folder, too."""
    uri: str = mlflow.get_tracking_uri()
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri or path.startswith("/") else f"sqlite:///{Path(path).absolute()}"


def shown(uri: str | None = None) -> str:
    """Return the address of a store (None: the present one) without the user's name and password."""
    return re.sub(r"//[^/@]*@", "//…@", uri or mlflow.get_tracking_uri())


def reason(error: Exception) -> str:
    """Say in one line why a store cannot be used, and what to do if that is known."""
    if isinstance(error, ModuleNotFoundError):
        return f"the driver of its database is not installed (pip install {error.name})"
    line = (str(error).splitlines() or [type(error).__name__])[0]
    if "error code 401" in line:
        return "it wants another name or password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    _, known, cause = line.rpartition("Caused by ")  # what requests and urllib3 say of the network
    if known:
        line = cause.split(": ")[-1].rstrip("\"')")
    return line[:200]
