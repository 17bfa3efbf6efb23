"""Room for many images: memory or, past a limit, a nameless file that memory maps piece by piece."""

import mmap
import os
import tempfile
import threading
import time
import weakref
from math import prod

import numpy as np

LIMIT = 2 << 30  # bytes of pixels that are held in memory
PAUSE = 0.1  # seconds between two returns of mapped pages


def room(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uninitialised uint8 (count, *shape), in a temporary file (TMPDIR) where it is more than `LIMIT` bytes.

    The file goes with the array. What is read of it leaves this process's memory again a tenth of a second later.

    Raises:
        OSError: the disk has no room for it.
    """
    size = count * prod(shape)
    if size <= LIMIT:
        return np.empty((count, *shape), np.uint8)
    with tempfile.TemporaryFile(prefix="rnp-images-") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # else a full disk would be a SIGBUS in the middle of the work
        file.truncate(size)
        mapped = mmap.mmap(file.fileno(), size)
    if hasattr(mmap, "MADV_DONTNEED"):
        threading.Thread(target=_return_pages, args=(weakref.ref(mapped),), daemon=True).start()
    return np.frombuffer(mapped, np.uint8).reshape(count, *shape)


def _return_pages(mapped: "weakref.ref[mmap.mmap]") -> None:
    """Give the pages back for as long as the mapping lives; what is in them stays in the file."""
    while (there := mapped()) is not None:
        there.madvise(mmap.MADV_DONTNEED)
        del there
        time.sleep(PAUSE)
