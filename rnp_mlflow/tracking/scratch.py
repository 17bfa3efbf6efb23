"""Temporary folders named after their process, so that the next call can remove those of a process that was killed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rnp_mlflow.tracking.process import Process

PREFIX, SEPARATOR = "rnp-", "-"


def folder() -> tempfile.TemporaryDirectory[str]:
    """Return a new temporary folder; it is removed when its context or the process ends."""
    return tempfile.TemporaryDirectory(prefix=f"{PREFIX}{Process.own().written(SEPARATOR)}{SEPARATOR}")


@contextmanager
def everything_in(folder: str) -> Iterator[None]:
    """Have all temporary files of this process go into `folder`: those of other packages too, which leave theirs."""
    former, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = former


def remove_abandoned() -> None:
    """Remove our folders of processes that are certainly dead."""
    for place in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = Process.read(place.name.removeprefix(PREFIX), SEPARATOR)
        with suppress(OSError):  # another call was faster
            if owner and owner.is_dead() and place.lstat().st_uid == os.getuid():
                shutil.rmtree(place, ignore_errors=True)  # it follows no link
