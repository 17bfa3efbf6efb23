"""One step of a grid: in the driver's process, or in a worker's, on any node."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import mlflow

from rnp_mlflow.artifacts.manifest import file_digest
from rnp_mlflow.config import RUN_ID
from rnp_mlflow.errors import LineageError, RnpError, StoreAway
from rnp_mlflow.grid.executors import Outcome, Task
from rnp_mlflow.steps import chain, output
from rnp_mlflow.steps.plan import make_plan
from rnp_mlflow.tracking import ledger, lineage, process, signals, views
from rnp_mlflow.tracking.runs import ATTACH, StepRun, prepare_store, step_run

PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")  # MLflow's words for a store that is busy or away
DEFECT = "a defect of this program; see error.txt of its run"
ABSENT = "not there"


class Superseded(signals.Stopped):
    """Another run stands for the one that was opened: run_id, or None if another grid is still making it."""

    def __init__(self, opened_id: str, run_id: str | None):
        super().__init__("another run stands for this one")
        self.opened_id, self.run_id = opened_id, run_id


def run(task: Task) -> Outcome:
    """Make a step, or find it made; return its run, or why there is none."""
    try:
        prepare_store()
    except LineageError as error:
        return Outcome(reason=str(error), lost=True)
    try:
        return find_or_make(task)
    except StoreAway as error:
        return Outcome(reason=str(error), lost=True)
    except RnpError as error:
        return Outcome(reason=str(error))
    except mlflow.MlflowException as error:
        words = " ".join(str(error).split())[:200]
        return Outcome(reason=f"the tracking store: {words}", lost=error.error_code in PASSING)
    except Exception as error:
        return Outcome(reason=f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({DEFECT})")
    finally:
        lineage.forget()


def run_in_worker(task: Task) -> Outcome:
    """Make a step in a process of Ray, which works on nothing else in the meantime."""
    os.environ.pop(ATTACH, None)  # of the driver, if `mlflow run` started it
    os.environ["MLFLOW_EXPERIMENT_ID"] = task.experiment_id
    mlflow.set_tracking_uri(task.store)
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    signals.install()
    try:
        with output.amount(quiet=True, verbose=False):
            return run(task)
    except (signals.Stopped, KeyboardInterrupt) as error:
        return Outcome(reason=str(error) or "interrupted", lost=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def find_or_make(task: Task) -> Outcome:
    """Take the step from another grid that has made it or is making it, or from a run of the same inputs; or make it.

    Raises:
        RnpError: bad input.
    """
    experiments = views.searched(task.experiment_id)
    while True:
        if found := ledger.wait_for_other(task.key, task.grid_id, experiments):
            return Outcome(found)
        try:
            with step_run(task.step, opening=ledger.opening(task.key, task.grid_id, lineage.code_digest())) as opened:
                if not ledger.is_first(opened.run_id, task.key, task.grid_id, experiments):
                    raise Superseded(opened.run_id, None)
                execute(opened, task)
            return Outcome(opened.run_id, made=True)
        except Superseded as error:
            ledger.delete(error.opened_id)
            if error.run_id:
                ledger.mark(error.run_id, task.key)
                return Outcome(error.run_id)


def execute(opened: StepRun, task: Task) -> None:
    """Make a step in the run that was opened for it.

    Raises:
        RnpError: bad input.
        Superseded: a finished run had the same inputs.
    """
    plan = make_plan(task.step, given(task))
    upstream = chain.resolve_upstream(task.step, plan)
    chain.label(opened, task.step, plan, upstream.get("attack"))  # so that a failed run has a name, too
    inputs = chain.inputs_digest(task.step, plan, upstream)
    if task.step != "import" and (known := lineage.find_finished(task.step, inputs)):
        raise Superseded(opened.run_id, known)
    chain.fill(opened, task.step, plan, upstream, inputs)


def given(task: Task) -> dict[str, object]:
    """Return the parameters of the step's call, with the run that it starts from."""
    if task.upstream is None:
        return dict(task.values)
    before = chain.previous_step(task.step, make_plan(task.step, task.values))
    return {**task.values, RUN_ID[before]: task.upstream}


def facts(places: list[str]) -> Mapping[str, str]:
    """Return what has to be the same on every node: the code, and the content of each file or folder; and the host."""
    return {"host": process.host_key(), "code": lineage.code_digest()} | {place: content(place) for place in places}


def content(place: str) -> str:
    """Return a digest of all that is in a file or folder."""
    path = Path(place)
    if path.is_file():
        return file_digest(path)
    if not path.is_dir():
        return ABSENT
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return lineage.digest({str(file.relative_to(path)): file_digest(file) for file in files})
