"""The store as the ledger of grids: which steps are there, who makes which, and what a lost one left open.

A step's key is in the tag `rnp.cell` from its run's first moment on, and the run ID of its grid in `rnp.grid`.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import mlflow
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from rnp_mlflow.tracking import abandoned, contents, store
from rnp_mlflow.tracking.runs import PARENT, PREFIX

CELL, GRID, CODE, BEAT, ERROR = (f"{PREFIX}{name}" for name in ("cell", "grid", "code", "beat", "error"))
BEATS, SILENCE = 15.0, 120.0  # seconds: between two signs of life of a grid; without one it is dead
LOOK = 2.0  # seconds between looks at another grid's step


@dataclass(frozen=True)
class Found:
    """What the store knows: key → the newest finished run; for others key → why the newest failed."""

    finished: dict[str, Run] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def opening(key: str, grid_id: str, code: str) -> dict[str, str]:
    """Return the tags that a step's run opens with."""
    return {CELL: key, GRID: grid_id, CODE: code, PARENT: grid_id}


def find(experiment_ids: list[str], code: str) -> Found:
    """Return the steps that this code has made, by one paged query."""
    rule = f"tags.`{CODE}` = '{code}' and tags.`{CELL}` != '' and attributes.status != 'RUNNING'"
    found = Found()
    for run in store.search(experiment_ids, rule):
        key = run.data.tags[CELL]
        if run.info.status == "FINISHED":
            found.finished.setdefault(key, run)
        elif run.info.status == "FAILED":
            found.failed.setdefault(key, run.data.tags.get(ERROR, "for an unknown reason"))
    for key in found.finished:
        found.failed.pop(key, None)
    return found


def is_intact(run: Run) -> bool:
    """Whether all files that later steps read are there, and as the run wrote them."""
    return contents.find_fault(run) is None


def mark(run_id: str, key: str) -> None:
    """Note that a run which no grid made is a step of this key."""
    store.client().set_tag(run_id, CELL, key)


def wait_for_other(key: str, grid_id: str, experiment_ids: list[str]) -> str | None:
    """Return a finished run of this key, if need be once another grid has made it; None if nobody makes it."""
    while True:
        runs = _of_key(key, experiment_ids)
        if done := next((run for run in runs if run.info.status == "FINISHED" and is_intact(run)), None):
            return str(done.info.run_id)
        if not any(_is_made_by_other(run, grid_id) for run in runs):
            return None
        time.sleep(LOOK)


def is_first(run_id: str, key: str, grid_id: str, experiment_ids: list[str]) -> bool:
    """Whether no other grid opened its run of this key before this one: of two, exactly one goes on."""
    runs = _of_key(key, experiment_ids)
    rivals = [run for run in runs if run.info.run_id != run_id and _is_made_by_other(run, grid_id)]
    own = next((run for run in runs if run.info.run_id == run_id), None)
    return own is None or all(_order(own) < _order(run) for run in rivals)


def _order(run: Run) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id


def _of_key(key: str, experiment_ids: list[str]) -> list[Run]:
    return store.search(experiment_ids, f"tags.`{CELL}` = '{key}'")


def _is_made_by_other(run: Run, grid_id: str) -> bool:
    owner = run.data.tags.get(GRID, grid_id)
    return run.info.status == "RUNNING" and owner != grid_id and is_alive(owner)


def is_alive(grid_id: str) -> bool:
    """Whether the process of a grid still gives signs of life."""
    try:
        run = store.client().get_run(grid_id)
    except mlflow.MlflowException:
        return False
    tags = run.data.tags
    silent = time.time() - float(tags.get(BEAT, run.info.start_time / 1000))
    return run.info.status == "RUNNING" and silent < SILENCE and not abandoned.is_dead(tags.get(abandoned.TAG, ""))


def close_lost(experiment_ids: list[str], grid_id: str, key: str | None = None) -> int:
    """Mark KILLED what this grid left RUNNING, and what dead grids did. key: of this grid's, that step's alone."""
    closed, alive = 0, dict[str, bool]()
    for run in store.search(experiment_ids, f"tags.`{GRID}` != '' and attributes.status = 'RUNNING'"):
        owner = run.data.tags[GRID]
        if owner == grid_id:
            lost = key in (None, run.data.tags.get(CELL))
        else:
            lost = not alive.setdefault(owner, is_alive(owner))
        closed += lost and abandoned.close_run(run.info.run_id)
    return closed


def delete(run_id: str) -> None:
    """Delete a run that another one stands for."""
    store.client().delete_run(run_id)


@contextmanager
def alive(grid_id: str) -> Iterator[None]:
    """Give signs of life while the context is open, from a thread of its own: this one may be busy for hours."""
    over = threading.Event()

    def beat() -> None:
        client = MlflowClient()  # not `store.client()`: signals belong to the main thread
        while not over.is_set():
            with suppress(Exception):  # the next beat may get through
                client.set_tag(grid_id, BEAT, f"{time.time():.0f}")
            over.wait(BEATS)

    thread = threading.Thread(target=beat, name="rnp-grid-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(BEATS)


def seconds(experiment_ids: list[str]) -> list[tuple[Mapping[str, str], float]]:
    """Return the tags and the time of the newest finished steps that were made with no other step in their time."""
    rule = f"tags.`{PREFIX}seconds` != '' and attributes.status = 'FINISHED'"
    runs = store.client().search_runs(experiment_ids, rule, max_results=1000, order_by=["start_time DESC"])
    return [
        (run.data.tags, float(run.data.tags[f"{PREFIX}seconds"]))
        for run in runs
        if CELL in run.data.tags or PARENT in run.data.tags
    ]
