"""The process around a step: device, threads, determinism, memory."""

import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from rnp_mlflow.config import Common
from rnp_mlflow.errors import ConfigError
from rnp_mlflow.steps.output import log as log
from rnp_mlflow.steps.progress import Bar, bar
from rnp_mlflow.tracking import store

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's mallopt
MALLOC_TUNING = {M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20}


def prepare(settings: Common) -> torch.device:
    """Set threads, determinism and patience for this process; return the device to work on.

    Raises:
        ConfigError: there is no such device here.
    """
    store.wait_up_to(settings.store_timeout)
    device = pick_device(settings.device)
    if device.type == "cpu":
        without_triton()
    tune_malloc()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA's condition for determinism
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms imports the compiler: 4 s
    # Filling fresh memory is a pass over every activation, and nothing reads it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    return device


def processor(device: torch.device) -> str:
    """Return a GPU's name and compute capability, or the vector instructions that torch uses on the CPU.

    Another one adds in another order, so it gives another result.
    """
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)} ({major}.{minor})"
    return torch.backends.cpu.get_cpu_capability()


def without_triton() -> None:
    """Have torch.export not find Triton, which it would import: 70 MiB that serve GPUs alone."""
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # it says that Triton is not there


@lru_cache
def tune_malloc() -> None:
    """Have glibc keep the memory of activations instead of giving it back after every layer.

    Fresh pages for each cost a tenth to a quarter of the time of a pass on the CPU.
    """
    for option, value in MALLOC_TUNING.items():
        glibc("mallopt", option, value)


@contextmanager
def low_memory_malloc() -> Iterator[None]:
    """Return large blocks to the OS immediately (undoes `tune_malloc`), so peak memory has no fragmentation in it.

    It takes a tenth to a quarter longer.
    """
    release_memory()
    glibc("mallopt", M_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        glibc("mallopt", M_MMAP_THRESHOLD, MALLOC_TUNING[M_MMAP_THRESHOLD])


def release_memory() -> None:
    """Give back what glibc has kept (`tune_malloc`): between steps and rounds of one, before what needs other."""
    glibc("malloc_trim", 0)


def glibc(function: str, *values: int) -> None:
    """Call one of glibc's own functions; do nothing if there is none."""
    if sys.platform == "linux" and (found := getattr(ctypes.CDLL(None), function, None)):
        found(*values)


def pick_device(name: str | None) -> torch.device:
    """Return the named device; for None CUDA if there is a GPU, else the CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name} is not a device; give cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name} is not supported; give cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device={name}: this machine has {count} CUDA devices; give device=cpu or auto")
    return device


@contextmanager
def progress(phase: str, total: int | None) -> Iterator[Bar]:
    """Show a bar on standard error that advances by one per call; nothing if that is not a terminal.

    Memory that is kept is given back at every advance, so that its holes do not add up.
    """
    with bar(phase, total, release_memory) as shown:
        yield shown


class LogForwarder(logging.Handler):
    """Prints what the package's loggers report, as steps print their own lines."""

    def emit(self, record: logging.LogRecord) -> None:
        log(f"  {record.getMessage().lstrip()}")


@lru_cache
def forward_log_records() -> None:
    """Show a person the lines that rooms below the steps log: what they left out, assumed or could not tell."""
    logging.getLogger("rnp_mlflow").addHandler(LogForwarder())
