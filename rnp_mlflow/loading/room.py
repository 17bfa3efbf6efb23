"""How much memory and disk there is, asked before any is taken: of this machine, and of the container around it."""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from rnp_mlflow.errors import RnpError

CGROUPS = Path("/sys/fs/cgroup")
# limit and use of a control group: version 2, version 1
FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def free_memory() -> int:
    """Return the bytes that this process can still take: the least of the machine's and of its control groups'."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError):
        known = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
        found += [int(known[1]) * 1024] if known else []
    for folder in _control_groups():
        for limit, use in FILES:
            with suppress(OSError, ValueError):  # "max": no limit
                found.append(int((folder / limit).read_text()) - _in_use(folder, use))
    return max(0, min(found))


def _control_groups() -> list[Path]:
    """Return the folders of this process's control groups, up to their root."""
    found = [CGROUPS, CGROUPS / "memory"]
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            if kinds in ("", "memory"):
                own = CGROUPS / kinds / place.strip("/")
                found += [folder for folder in (own, *own.parents) if folder.is_relative_to(CGROUPS)]
    return list(dict.fromkeys(found))


def _in_use(folder: Path, use: str) -> int:
    """Return the bytes in use, without those of files that the kernel gives up when it needs them."""
    found = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    names = [f"{state}_file" for state in ("active", "inactive")]
    cache = sum(int(found.get(f"total_{name}", found.get(name, 0))) for name in names)
    return int((folder / use).read_text()) - cache


def check_memory(needed: int, purpose: str, error: type[RnpError]) -> None:
    """Refuse what needs more memory than there is.

    Raises:
        error: it would.
    """
    if needed > (free := free_memory()):
        raise error(f"{purpose}: this needs {size(needed)} of memory, and {size(free)} are free")


def check_disk(needed: int, folder: str, purpose: str, error: type[RnpError]) -> None:
    """Refuse what needs more room in a folder than there is.

    Raises:
        error: it would.
    """
    if needed > (free := shutil.disk_usage(folder).free):
        raise error(f"{purpose}: this needs {size(needed)} of disk, and {size(free)} are free in {folder}: set TMPDIR")


def size(count: int) -> str:
    """Return a number of bytes as text."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
