"""Memory for many images: ordinary memory or, above a limit, a memory-mapped temporary file."""

import mmap
import os
import tempfile
import threading
import time
import weakref
from math import prod

import numpy as np

from rnp_mlflow.errors import DataError
from rnp_mlflow.loading import check_disk, check_memory

LIMIT = 2 << 30  # largest number of bytes of pixels to keep in memory
PAUSE = 0.1  # seconds between two releases of mapped pages


def allocate(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Allocate uninitialised uint8 (count, *shape), in a temporary file (TMPDIR) if it exceeds `LIMIT` bytes.

    The file is deleted with the array. Pages that were read leave the memory of this process after `PAUSE` seconds.

    Raises:
        DataError: there is not so much memory, or not so much room on the disk.
        OSError: the disk is full.
    """
    size = count * prod(shape)
    purpose = f"{count:,} images of {' × '.join(map(str, shape))}"
    if size <= LIMIT:
        check_memory(size, purpose, DataError)
        return np.empty((count, *shape), np.uint8)
    check_disk(size, tempfile.gettempdir(), purpose, DataError)
    with tempfile.TemporaryFile(prefix="rnp-images-") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # else a full disk would cause a SIGBUS later
        file.truncate(size)
        mapped = mmap.mmap(file.fileno(), size)
    if hasattr(mmap, "MADV_DONTNEED"):
        threading.Thread(target=_return_pages, args=(weakref.ref(mapped),), daemon=True).start()
    return np.frombuffer(mapped, np.uint8).reshape(count, *shape)


def _return_pages(mapped: "weakref.ref[mmap.mmap]") -> None:
    """Release the pages regularly while the mapping exists; their content stays in the file."""
    while (mapping := mapped()) is not None:
        mapping.madvise(mmap.MADV_DONTNEED)
        del mapping
        time.sleep(PAUSE)
