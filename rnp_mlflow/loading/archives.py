"""Untrusted zip archives: their directory is checked before anything is unpacked."""

import io
import os
import zipfile
from pathlib import Path

from rnp_mlflow.errors import RnpError
from rnp_mlflow.loading.room import free_memory

GIB = 2**30
UNDOUBTED, RATIO = 256 << 20, 100  # bytes of content that may be packed to any size, and the ratio for more
DIRECTORY = 8 << 20  # bytes of an archive's directory, at most: some 100,000 entries


class _Bounded(io.BufferedReader):
    """A file of which little is read at once: `zipfile` asks for as much as the file says that its directory has."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > DIRECTORY:
            raise ValueError("its directory is too large")
        return super().read(size)


def directory(file: Path) -> tuple[list[zipfile.ZipInfo], bytes]:
    """Return the entries of an archive, and its comment.

    Raises:
        Exception: it is broken, in any way, or its directory is larger than `DIRECTORY`.
    """
    with _Bounded(io.FileIO(file)) as stream, zipfile.ZipFile(stream) as archive:
        return archive.infolist(), archive.comment


def check_zip(file: Path, stored: bool, error: type[RnpError]) -> None:
    """Refuse an archive whose entries declare more content than it can hold.

    stored: entries must be uncompressed, as torch writes them, and must not overlap. Nothing may follow the directory,
    so that other readers find the same directory. If not `stored`, entries may be compressed, but their content must
    not exceed half of the free memory nor, above `UNDOUBTED` bytes, `RATIO` times the size of the file.

    Raises:
        error: the archive declares more, or is truncated.
    """
    try:
        entries, comment = directory(file)
        with file.open("rb") as stream:
            stream.seek(-22, os.SEEK_END)
            at_end = stream.read(4) == b"PK\5\6" and not comment
    except Exception as broken:  # a broken file can raise anything
        raise error(f"{file} is truncated or not a zip archive: {str(broken)[:160]}") from None
    declared, actual = sum(entry.file_size for entry in entries), file.stat().st_size
    too_large = declared > free_memory() / 2 or (declared > UNDOUBTED and declared > RATIO * actual)
    if declared > actual if stored else too_large:
        raise error(f"{file} is refused: its {actual:,} bytes declare {declared:,} bytes of content")
    if stored and (not at_end or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)):
        raise error(f"{file} is refused: torch does not write such archives (compressed, or data after the end)")
