"""MLflow's client: each call is over before a signal ends the process, and is tried again if the store was busy."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import ParamSpec, TypeVar

import mlflow
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from rnp_mlflow.errors import LineageError
from rnp_mlflow.tracking import location, signals

P = ParamSpec("P")
R = TypeVar("R")

# What SQLite says to the slower of two processes; nothing of its call was stored.
LOST = ("UNIQUE constraint failed", "database is locked")
PAGE = 1000  # runs of one request
PAUSES = (0.1, 0.3, 1.0)  # seconds before the next try
ENDING_PAUSES = (1.0, 2.0, 4.0)  # the same for the end of a run, whatever was wrong


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


def whole(call: Callable[P, R]) -> Callable[P, R]:
    """Return a call of the store that no signal interrupts, and that is made again if another process was faster."""

    def made(*args: P.args, **kwargs: P.kwargs) -> R:
        with signals.postponed():
            for pause in PAUSES:
                try:
                    return call(*args, **kwargs)
                except mlflow.MlflowException as error:
                    if not any(words in str(error) for words in LOST):
                        raise
                time.sleep(pause)
            return call(*args, **kwargs)

    return made


def end_run(run_id: str, status: str) -> None:
    """End the active run; try again a few times if the store refuses or cannot be reached."""
    with signals.postponed():
        try:
            mlflow.end_run(status)  # it is no longer the active run, even if this fails
        except Exception:
            for pause in ENDING_PAUSES:
                time.sleep(pause)
                with suppress(Exception):
                    MlflowClient().set_terminated(run_id, status)
                    return
            raise
