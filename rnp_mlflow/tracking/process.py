"""Processes of this host: a name for one that no other process ever has, and whether it still lives.

Imports only the standard library, because `__main__` reads it before anything else.
"""

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

from rnp_mlflow.tracking import signals

SHELLS = ("bash", "sh", "dash", "zsh")  # `mlflow run` starts one, which starts Python or becomes it
UNKNOWN = "unknown"  # a start that the system does not tell
PERIOD = 1.0  # seconds between looks at the parent


@dataclass(frozen=True)
class Process:
    """host: key of the host. start: mark of when the process began; another process with the same ID has another."""

    host: str
    pid: int
    start: str

    @classmethod
    def own(cls) -> Self:
        """Return this process."""
        found = _look(os.getpid())
        return cls(host_key(), os.getpid(), found.start if found else UNKNOWN)

    @classmethod
    def read(cls, name: str, separator: str) -> Self | None:
        """Return the process whose host, ID and start stand one after the other in `name`; None if none do."""
        host, pid, start, *_ = [*name.split(separator), "", "", ""]
        usual = pid.isdecimal() and pid.isascii() and 0 < int(pid) < 2**31 and host and start
        return cls(host, int(pid), start) if usual else None

    def written(self, separator: str) -> str:
        """Return what `read` reads."""
        return separator.join((self.host, str(self.pid), self.start))

    def is_dead(self) -> bool:
        """Return whether it is certain that the process has ended: it was of this host, and is not there."""
        if self.host != host_key():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it is another person's, so it is there
            pass
        found = _look(self.pid)
        return found is not None and (found.ended or self.start not in (found.start, UNKNOWN))


@dataclass(frozen=True)
class _Look:
    """What the system says of a process ID. ended: it is dead, but its parent has not noticed yet."""

    ended: bool
    start: str
    parent: int
    command: str


def _look(pid: int) -> _Look | None:
    """Return what the system says of a process; None if it says nothing."""
    with suppress(OSError, ValueError, IndexError, subprocess.SubprocessError):
        return _look_in_proc(pid) if sys.platform == "linux" else _ask_ps(pid)
    return None


def _look_in_proc(pid: int) -> _Look:
    before, _, after = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
    fields = after.split()  # proc(5): state, parent, …; the 22nd of all is the start in ticks since boot
    return _Look(fields[0] in "ZX", f"{_boot()}{fields[19]}", int(fields[1]), before.partition("(")[2])


@lru_cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]


def _ask_ps(pid: int) -> _Look:
    columns = (part for name in ("stat", "ppid", "lstart", "comm") for part in ("-o", f"{name}="))
    words = ["ps", *columns, "-p", str(pid)]
    env = os.environ | {"LC_ALL": "C", "TZ": "UTC"}
    state, parent, *rest = subprocess.run(words, env=env, capture_output=True, text=True, timeout=10).stdout.split()
    start = hashlib.sha256(" ".join(rest[:5]).encode()).hexdigest()[:12]
    return _Look(state.startswith("Z"), start, int(parent), Path(rest[5]).name.lstrip("-"))


@lru_cache
def host_key() -> str:
    """Return a key of this host: its name, machine ID and, on Linux, the space of its process IDs.

    A container has its own space, in which another container's processes seem not to exist.
    """
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/etc/machine-id").read_text().strip())
    if len(parts) == 1 or not parts[1]:
        parts.append(str(uuid.getnode()))
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


class _Parents:
    """The parent when the process began and, if that is a shell, the shell's parent."""

    found: tuple[int, ...] = ()


def _parents() -> tuple[int, ...]:
    parent = os.getppid()
    shell = _look(parent)
    return (parent, shell.parent) if shell and shell.command in SHELLS else (parent,)


def remember_parents() -> None:
    """Remember who started this process, for `end_with_parents`; the sooner the better."""
    _Parents.found = _parents()


def end_with_parents() -> None:
    """Stop this process as SIGTERM does when `mlflow run`, which started it, has ended."""
    if not _Parents.found:
        remember_parents()

    def watch() -> None:
        while _still_there():
            time.sleep(PERIOD)
        signals.stop("stopped, because the process that started this one (mlflow run) has ended")

    threading.Thread(target=watch, name="rnp-parents", daemon=True).start()


def _still_there() -> bool:
    parent, *above = _Parents.found
    if os.getppid() != parent:
        return False
    shell = _look(parent) if above else None
    return shell is None or shell.parent == above[0]
