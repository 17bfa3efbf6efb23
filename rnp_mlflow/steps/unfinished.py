"""The saved state of a long step that was killed, from which the next call with the same inputs goes on."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save

from rnp_mlflow.core.keeping import NOWHERE, Keeper, State
from rnp_mlflow.core.moments import MomentMeter
from rnp_mlflow.errors import ModelError
from rnp_mlflow.steps import runtime
from rnp_mlflow.tracking.runs import StepRun

SECONDS = 30.0  # between two states, at least
COST = 200  # times as long as it takes to save a state, at least: half a percent
DAYS = 14  # that a state is kept
NAME, VALUES = "state", "values"
LOGGER = logging.getLogger(__name__)


def home() -> Path:
    """Return the folder of all states, in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnp_mlflow" / "unfinished"


class LocalKeeper:
    """Keeps one state in a folder, as safetensors after their SHA-256. meter: what was measured is saved with it."""

    def __init__(self, folder: Path, meter: MomentMeter | None):
        self.file, self.meter = folder / NAME, meter
        self.next = time.monotonic() + SECONDS

    def load(self) -> State | None:
        """Return the saved state, None if there is none or its file is not whole."""
        with suppress(OSError, ValueError, KeyError, SafetensorError):
            head, tensors = self.file.read_bytes().partition(b"\n")[::2]
            if hashlib.sha256(tensors).hexdigest().encode() != head:
                return None
            found = load(tensors)
            values: dict[str, Any] = json.loads(found.pop(VALUES).numpy().tobytes())
            if self.meter:
                self.meter.restore(values.pop("meter"))
            epoch = len(values.get("course/history", ())) + 1
            runtime.log(f"  goes on in epoch {epoch}, from what an earlier call saved that did not finish")
            return State(found, values)
        return None

    def is_due(self) -> bool:
        """Return whether enough time has passed since the last state."""
        return time.monotonic() >= self.next

    def save(self, state: State) -> None:
        """Replace the state; if that is not possible, the work goes on without."""
        began = time.monotonic()
        values = state.values | ({"meter": self.meter.state()} if self.meter else {})
        text = torch.frombuffer(bytearray(json.dumps(values).encode()), dtype=torch.uint8)
        # A copy of each, because safetensors refuses tensors that share memory.
        tensors = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.tensors.items()}
        content = save(tensors | {VALUES: text})
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # another process may have removed it
            unfinished = self.file.with_suffix(".new")
            with unfinished.open("wb") as stream:
                stream.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
                stream.flush()
                os.fsync(stream.fileno())
            unfinished.replace(self.file)
        except OSError as error:
            LOGGER.warning("the state of this step cannot be saved, so a kill loses its work: %s", error)
            self.next = float("inf")
            with suppress(OSError):
                self.file.with_suffix(".new").unlink()
            return
        now = time.monotonic()
        self.next = now + max(SECONDS, COST * (now - began))


@contextmanager
def keeping(run: StepRun, meter: MomentMeter | None = None) -> Iterator[Keeper]:
    """Yield what saves the loop of this run's step; nothing is saved if another process is at the same step.

    The state is removed when the run has finished, or training diverged.
    """
    if run.inputs is None:
        yield NOWHERE
        return
    folder = home() / run.inputs
    try:
        remove_old(folder.parent)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(folder.parent / f"{run.inputs}.lock")
        lock.acquire(timeout=0)
    except Timeout:
        yield NOWHERE
        return
    except OSError as error:
        LOGGER.warning("the state of this step will not be saved, so a kill loses its work: %s", error)
        yield NOWHERE
        return
    remove = _remover(folder)
    run.when_finished.append(remove)
    try:
        yield LocalKeeper(folder, meter)
    except ModelError:  # it would diverge again
        remove()
        raise
    finally:
        lock.release()
        if not (folder / NAME).exists():
            remove()


def _remover(folder: Path) -> Callable[[], None]:
    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)

    return remove


def remove_old(place: Path) -> None:
    """Remove states that nobody went on from for `DAYS`."""
    for folder in place.glob("*/"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > DAYS * 86400:
                _remover(folder)()
