"""Zip archives from outside: their directory is checked before anything is unpacked."""

import os
import zipfile
from pathlib import Path

from rnp_mlflow.errors import RnpError

GIB = 2**30


def check_zip(file: Path, stored: bool, error: type[RnpError]) -> None:
    """Refuse an archive whose entries declare more than it can hold.

    stored: entries must be uncompressed, as torch writes them, and not overlap, and nothing may follow the
    directory, so that other readers find the same one. Else they may grow, but neither beyond half this
    machine's memory nor, above 1 GiB, beyond 200 times the file.

    Raises:
        error: it declares more, or it is truncated.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries, comment = archive.infolist(), archive.comment
        with file.open("rb") as stream:
            stream.seek(-22, os.SEEK_END)
            at_end = stream.read(4) == b"PK\5\6" and not comment
    except Exception as broken:  # whatever a broken file makes of the reader
        raise error(f"{file} is no whole archive: {str(broken)[:160]}") from None
    declared, held = sum(entry.file_size for entry in entries), file.stat().st_size
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    bomb = declared > held if stored else declared > memory / 2 or (declared > GIB and declared > 200 * held)
    if bomb:
        raise error(f"{file} is refused: its {held:,} bytes declare {declared:,} of content")
    if stored and (not at_end or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)):
        raise error(f"{file} is refused: it is no archive as torch writes them (compressed, or something follows it)")
