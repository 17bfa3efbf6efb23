"""Runs that a killed process left open: they are closed once it is certain that their process has ended."""

import logging
import socket

from rnp_mlflow.tracking import store
from rnp_mlflow.tracking.process import Process

TAG, SEPARATOR = "rnp.process", "/"
ERROR = "its process ended without closing it"
LOGGER = logging.getLogger(__name__)


def own_tag() -> str:
    """Return what the tag of a run says of this process: the host's name and key, process ID, and its start."""
    return f"{socket.gethostname()}{SEPARATOR}{Process.own().written(SEPARATOR)}"


def close(experiment_ids: list[str]) -> None:
    """Mark KILLED what is still RUNNING of dead processes of this host, and say so in one line."""
    running = store.search(experiment_ids, "status = 'RUNNING' and tags.`rnp.entry` != ''")
    found = [run.info.run_id for run in running if is_dead(run.data.tags.get(TAG, ""))]
    closed = [run_id for run_id in found if close_run(run_id)]
    if closed:
        subject = f"run {closed[0]} is" if len(closed) == 1 else f"{len(closed)} runs ({', '.join(closed)}) are"
        LOGGER.warning("%s now marked KILLED: the process ended without closing it", subject)


def is_dead(tag: str) -> bool:
    """Whether it is certain that the process which a tag names has ended."""
    process = Process.read(tag.partition(SEPARATOR)[2], SEPARATOR)
    return process is not None and process.is_dead()


def close_run(run_id: str) -> bool:
    """Close a run unless it was closed by its process before that ended, or by another call. Return whether it was."""
    client = store.client()
    if client.get_run(run_id).info.status != "RUNNING":
        return False
    client.set_tag(run_id, "rnp.error", ERROR)
    client.set_terminated(run_id, "KILLED")
    return True
