"""Regular files and folders alone: what else has a name (FIFO, device, socket) may have no end."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from rnp_mlflow.errors import RnpError

DEEPEST = 32  # folders below each other


def check_regular(file: Path, error: type[RnpError], most: int | None = None) -> None:
    """Refuse what is not a regular file, before it is opened. most: bytes that it may have.

    Raises:
        error: it does not exist, is a folder, a FIFO, a device or a socket, or is too large.
    """
    try:
        found = file.stat()
    except (OSError, ValueError):
        raise error(f"{file} does not exist or cannot be read") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a FIFO, device or socket"
        raise error(f"{file} is {kind}, not a file")
    if most is not None and found.st_size > most:
        raise error(f"{file} has {found.st_size:,} bytes; such a file has at most {most:,}")


def files_below(folder: Path, error: type[RnpError]) -> Iterator[Path]:
    """Yield every regular file below a folder, sorted; links to folders are not followed.

    Raises:
        error: a link leads out of the folder, or folders are too deep.
    """
    yield from _files(folder, folder.resolve(), error, 0)


def _files(folder: Path, root: Path, error: type[RnpError], depth: int) -> Iterator[Path]:
    if depth > DEEPEST:
        raise error(f"{root} is refused: it has folders more than {DEEPEST} deep")
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise error(f"{path} is a link that leads out of {root}: put what it names there")
        if path.is_dir() and not path.is_symlink():
            yield from _files(path, root, error, depth + 1)
        elif path.is_file():
            yield path
