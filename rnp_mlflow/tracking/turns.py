"""One process of this host makes a step in a store; others that need the same there wait, and take over if it dies.

The system releases the lock of a process that ends, however it ends. A process of another host does not wait: it makes
the step too, with the same result.
"""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "rnp_turns-"
LOOK = 0.2  # seconds between tries
LOGGER = logging.getLogger(__name__)


@contextmanager
def turn(step: str, work: str) -> Iterator[None]:
    """Wait until no other process of this person makes this step; then make it. work: digest of store and inputs."""
    folder = Path(tempfile.gettempdir(), f"{PREFIX}{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = FileLock(folder / f"{work[:32]}.lock")
    if folder.stat().st_uid != os.getuid():  # someone else's
        yield
        return
    try:
        lock.acquire(timeout=0)
    except Timeout:
        LOGGER.warning("%s: another process makes it; this one waits", step)
        lock.acquire(poll_interval=LOOK)
    try:
        yield
    finally:
        lock.release()
