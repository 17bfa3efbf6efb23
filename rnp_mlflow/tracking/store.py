"""MLflow's client: each call is over before a signal ends the process, and is tried again while the store is away."""

import errno
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import ParamSpec, TypeVar

import mlflow
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from rnp_mlflow.errors import LineageError, StoreAway
from rnp_mlflow.tracking import location, signals

P = ParamSpec("P")
R = TypeVar("R")

LOGGER = logging.getLogger(__name__)
# What a database says to the slower of two processes; nothing of its call was stored. Most often the same call finds
# then what the other has stored; if it does not in so many tries, its error counts.
RACE, TRIES = ("UNIQUE constraint failed", "duplicate key value"), 3
LOCKED = "database is locked"
# What passes: words of MLflow about a server, of SQLite, and of PostgreSQL and MySQL
PASSING = (
    *RACE, LOCKED,
    "failed with exception", "Max retries exceeded", "error code 502", "error code 503", "error code 504",
    "database or disk is full", "disk I/O error", "unable to open database file", "No space left on device",
    "connection refused", "server closed the connection", "could not connect", "connection to server",
    "the database system is", "too many clients", "Lost connection", "has gone away",
)  # fmt: skip
PASSING_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN)
PAGE = 1000  # runs of one request
PAUSES = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 15.0)  # seconds before the next try; the last for all that follow
ENDING_PAUSES = (1.0, 2.0, 4.0)  # the same for the end of a run, whatever was wrong
WORD = 10.0  # seconds without an answer before a person is told
REQUEST = 60.0  # seconds of one request, at most, if the user sets no MLFLOW_HTTP_REQUEST_TIMEOUT
TIMEOUT, RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


class _Patience:
    """limit: seconds that a call waits for a store that is away. gone: one has waited for so long; no other does."""

    limit = 300.0
    gone = False


class _Client:
    """Hands every call on to MLflow's client (`whole`)."""

    def __init__(self) -> None:
        self._own = MlflowClient()

    def __getattr__(self, name: str) -> Callable[..., object]:
        return whole(getattr(self._own, name))


@contextmanager
def refusals() -> Iterator[None]:
    """Make an error of MLflow's one of the user's: a store refuses what its owner changed, or what it was not given.

    Raises:
        LineageError: the same in one line.
    """
    try:
        yield
    except mlflow.MlflowException as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:400]
        raise LineageError(f"the tracking store {location.shown()} refuses: {reason}") from None


def search(experiment_ids: list[str], rule: str) -> list[Run]:
    """Return all runs that a filter of MLflow's finds, the newest first, by one paged query.

    Raises:
        MlflowException: the filter is malformed.
    """
    found, token = list[Run](), None
    while True:
        page = client().search_runs(
            experiment_ids, rule, max_results=PAGE, order_by=["start_time DESC"], page_token=token
        )
        found += page
        if not (token := page.token):
            return found


def client() -> MlflowClient:
    """Return a client of the tracking store."""
    return _Client()


def wait_up_to(seconds: float) -> None:
    """Have calls wait so long for a store that is away."""
    _Patience.limit = seconds


@contextmanager
def at_once() -> Iterator[None]:
    """Have calls wait for nothing: before the work, an error says more than silence. A store that is back counts."""
    limit, _Patience.limit, _Patience.gone = _Patience.limit, 0.0, False
    # One request at a time: the pauses and the limit are ours. The user's own choice counts.
    os.environ.setdefault(RETRIES, "0")
    os.environ.setdefault(TIMEOUT, f"{min(REQUEST, max(limit, 1)):.0f}")
    try:
        yield
    finally:
        _Patience.limit = limit


def whole(call: Callable[P, R]) -> Callable[P, R]:
    """Return a call of the store that no signal interrupts, and that is made again while the store is busy or away.

    Raises:
        StoreAway: it has been away for `_Patience.limit`.
    """

    def made(*args: P.args, **kwargs: P.kwargs) -> R:
        began = time.monotonic()
        with signals.postponed(), _brief() if _Patience.gone else _told() as word:
            for tried, pause in enumerate(itertools.chain(PAUSES, itertools.repeat(PAUSES[-1]))):
                try:
                    with _given_up():  # Ctrl-C, pressed again and again
                        return call(*args, **kwargs)
                except Exception as error:
                    raced = any(words in str(error) for words in RACE)
                    if not is_passing(error) or (raced and tried >= TRIES):
                        raise
                    word.reason = location.reason(error)
                    waited = time.monotonic() - began
                    busy = raced or (LOCKED in str(error) and waited < PAUSES[-1])
                    if _Patience.gone or (waited + pause > _Patience.limit and not busy):
                        _Patience.gone = True
                        raise StoreAway(_away(waited, word.reason)) from error
                with signals.allowed() if pause >= 1 else nullcontext(), _given_up():
                    time.sleep(pause)
        raise AssertionError("unreachable")

    return made


@contextmanager
def _given_up() -> Iterator[None]:
    """Note that a person waits no longer for the store, if a signal says so."""
    try:
        yield
    except (signals.Stopped, KeyboardInterrupt):
        _Patience.gone = True
        raise


def is_away() -> bool:
    """Whether the store was away for so long that nothing waits for it any more."""
    return _Patience.gone


def is_passing(error: Exception) -> bool:
    """Whether the same call may succeed later: the store is busy, full or away."""
    if isinstance(error, OSError):
        return error.errno in PASSING_NUMBERS
    first = next(iter(str(error).splitlines()), "")  # what follows is the query, with any value in it
    return isinstance(error, mlflow.MlflowException) and any(words.lower() in first.lower() for words in PASSING)


def _away(seconds: float, reason: str) -> str:
    return f"the tracking store {location.shown()} cannot be used, tried for {seconds:.0f} s: {reason}"


class _Word:
    """reason: why the call has not succeeded so far."""

    reason = "no answer"


@contextmanager
def _told() -> Iterator[_Word]:
    """Tell the person who waits, once, that a call takes long."""
    word = _Word()

    def tell() -> None:
        limit = f"; it is tried for {_Patience.limit:.0f} s (store_timeout)" if _Patience.limit else ""
        LOGGER.warning("waiting for the tracking store %s: %s%s", location.shown(), word.reason, limit)

    timer = threading.Timer(WORD, tell)
    timer.daemon = True
    timer.start()
    try:
        yield word
    finally:
        timer.cancel()


@contextmanager
def _brief() -> Iterator[_Word]:
    """Let a request take three seconds: the store has been waited for."""
    former = {name: os.environ.get(name) for name in (TIMEOUT, RETRIES)}
    os.environ.update({TIMEOUT: "3", RETRIES: "0"})
    try:
        yield _Word()
    finally:
        for name, value in former.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def end_run(run_id: str, status: str) -> None:
    """End the active run; try again a few times if the store refuses or cannot be reached.

    Raises:
        LineageError: a finished run cannot be marked so. One that is not finished is left to the next call.
    """
    with signals.postponed():
        try:
            with _brief() if _Patience.gone else nullcontext():
                mlflow.end_run(status)  # it is no longer the active run, even if this fails
            return
        except Exception as error:
            reason = location.reason(error)
        for pause in ENDING_PAUSES if not _Patience.gone else ():
            time.sleep(pause)
            with suppress(Exception):
                client().set_terminated(run_id, status)
                return
        if status == "FINISHED":
            raise LineageError(f"run {run_id} is complete, but cannot be marked {status}: {reason}")
        LOGGER.warning("run %s cannot be marked %s, the next call on this host does it: %s", run_id, status, reason)
