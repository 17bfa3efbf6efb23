"""Open, fill and close MLflow runs: no run is left RUNNING, and no artifact is left incomplete."""

import hashlib
import json
import logging
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.entities import Metric, Run
from mlflow.utils import name_utils

import rnp_mlflow
from rnp_mlflow.artifacts import manifest, table
from rnp_mlflow.errors import LineageError, RnpError
from rnp_mlflow.tracking import abandoned, kept, location, process, scratch, signals, store, views
from rnp_mlflow.tracking.naming import Subject

PREFIX = "rnp."
# MLflow's own tags
ENTRY_POINT, NAME, PARENT = "mlflow.project.entryPoint", "mlflow.runName", "mlflow.parentRunId"
ATTACH = "MLFLOW_RUN_ID"  # names the run that `mlflow run` opened
NOTE, CONTEXT = "mlflow.note.content", "mlflow.data.context"
COMMIT, BRANCH, ADDRESS = (f"mlflow.source.git.{name}" for name in ("commit", "branch", "repoURL"))
# The folder that contains this package, and one of its files that must be tracked by its git repository
HOME, TRACKED = Path(__file__).resolve().parents[2], "rnp_mlflow/__init__.py"
LOGGER = logging.getLogger(__name__)
VERSIONS = ("torch", "torchvision", "numpy", "mlflow")


@dataclass(frozen=True)
class DataPart:
    """Images with one use. profile: figures to show. key: what distinguishes them from other parts of the same data."""

    profile: Mapping[str, object]
    key: str = ""


class StepRun:
    """One open run. Files go to `folder` and are uploaded together when the work has succeeded.

    closing: makes the tags that are known once all files are there.
    """

    def __init__(self, run_id: str, experiment_id: str, entry: str, folder: Path):
        self.run_id, self.experiment_id, self.entry, self.folder = run_id, experiment_id, entry, folder
        self.client = store.client()
        self.started = time.monotonic()
        self.data: mlflow.entities.Dataset | None = None
        self.data_digest: str | None = None
        self.uploaded = False
        self.closing: Callable[[], Mapping[str, object]] = dict
        self.inputs: str | None = None  # digest of what decides its result; None if it has to be made again
        self.when_finished: list[Callable[[], None]] = []
        self.given_name: str | None = None  # by us
        self.subject = Subject()

    def name(self, name: str) -> None:
        """Name the run, unless the user named it (`mlflow run --run-name`)."""
        known = self.client.get_run(self.run_id).info.run_name
        if known == self.given_name or is_random_name(known):
            self.client.set_tag(self.run_id, NAME, name)
            self.given_name = name

    def describe(self, markdown: str) -> None:
        """Set the description that the run's page shows."""
        self.client.set_tag(self.run_id, NOTE, markdown)

    def params(self, values: Mapping[str, str]) -> None:
        """Log the parameters that `mlflow run` has not logged yet (MLflow refuses to change a value)."""
        logged = self.client.get_run(self.run_id).data.params
        new = [mlflow.entities.Param(k, v) for k, v in values.items() if k not in logged]
        self.client.log_batch(self.run_id, params=new)

    def tags(self, values: Mapping[str, object]) -> None:
        """Set our tags, each with the prefix `rnp.`."""
        tags = [mlflow.entities.RunTag(PREFIX + k, str(v)) for k, v in values.items()]
        self.client.log_batch(self.run_id, tags=tags)

    def metrics(self, values: Mapping[str, float | None], step: int = 0, model_id: str | None = None) -> None:
        """Log one value per metric at an integer step; None is skipped. model_id: the logged model they describe."""
        self.history([(name, value, step) for name, value in values.items()], model_id)

    def history(self, rows: list[tuple[str, float | None, int]], model_id: str | None = None) -> None:
        """Log (name, value, step) of many metrics in as few requests as possible; None is skipped."""
        now = int(time.time() * 1000)
        of = {"model_id": model_id, "run_id": self.run_id} if model_id else {}
        if model_id and self.data:
            of |= {"dataset_name": self.data.name, "dataset_digest": self.data.digest}
        found = [Metric(name, float(v), now, step, **of) for name, v, step in rows if v is not None]
        for start in range(0, len(found), 500):
            self.client.log_batch(self.run_id, metrics=found[start : start + 500])

    def dataset(self, name: str, digest: str, source: str, parts: Mapping[str, DataPart]) -> None:
        """Show the data's parts on the run's page, and store the digest of all (SHA-256, hex) in the tag `rnp.data`.

        parts: what the images are used for → the part. The last is the one that metrics of a model are linked to.
        """
        self.tags({"data": digest})
        self.data_digest = digest
        inputs = []
        for context, part in parts.items():
            own = hashlib.sha256(f"{digest} {context} {part.key}".encode()).hexdigest()[:36]
            self.data = mlflow.entities.Dataset(name, own, "local", source, profile=json.dumps(part.profile))
            inputs.append(mlflow.entities.DatasetInput(self.data, [mlflow.entities.InputTag(CONTEXT, context)]))
        self.client.log_inputs(self.run_id, inputs)

    def upload(self) -> None:
        """Upload the files in `folder` and their manifest, once; `step_run` calls this at the end if needed.

        Raises:
            LineageError: the store does not take them. Those of a step are kept, and the message says where.
        """
        if self.uploaded:
            return
        tags: dict[str, object] = {}
        if self.entry in table.ARTIFACTS:
            tags = {"manifest": manifest.write(self.folder, self.entry), **self.closing()}
        try:
            self.tags(tags)
            store.whole(mlflow.log_artifacts)(str(self.folder), run_id=self.run_id)
        except (OSError, mlflow.MlflowException, LineageError) as error:
            if not tags:
                raise
            raise self._keep(tags, location.reason(error)) from error
        except (signals.Stopped, KeyboardInterrupt) as error:
            if tags and store.is_away():
                LOGGER.warning(self._keep(tags, str(error) or "interrupted"))
            raise
        self.uploaded = True

    def _keep(self, tags: Mapping[str, object], reason: str) -> LineageError:
        """Keep the files of the folder; return the error that says where (`kept.keep`)."""
        seconds = round(time.monotonic() - self.started, 2)
        rest = {PREFIX + name: str(value) for name, value in {**tags, "seconds": seconds}.items()}
        return kept.keep(self.folder, kept.Record(self.run_id, self.entry, rest), reason)


@contextmanager
def step_run(
    entry: str,
    tags: Mapping[str, object] | None = None,
    experiment_id: str | None = None,
    opening: Mapping[str, str] | None = None,
) -> Iterator[StepRun]:
    """Open a run for one step: the one that `mlflow run` opened, a child of the active run, or a new one.

    experiment_id: of a new one, if the user chose none; None takes the experiment `rnp`. opening: whole names of tags
    that the run has from its first moment, with their values.
    It ends FINISHED, FAILED (any exception), or KILLED (SIGTERM, SIGHUP, Ctrl-C). The tag `rnp.error` has the message
    of the error. If the error is not the user's, `error.txt` has the traceback.
    """
    prepare_store()
    with signals.postponed(), scratch.folder() as name:  # a signal is raised only where the step works
        is_outermost = mlflow.active_run() is None
        active = _start(entry, experiment_id, opening or {})
        run = StepRun(active.info.run_id, active.info.experiment_id, entry, Path(name))
        status = "FAILED"
        try:
            if is_outermost:
                kept.check_room(run.folder, active.info.artifact_uri)
                _tidy(run.experiment_id)
            _name_source(run.run_id)
            run.tags({**machine_tags(), **(tags or {})})
            with signals.allowed():
                yield run
            run.upload()
            run.tags({"seconds": round(time.monotonic() - run.started, 2)})
            status = "FINISHED"
        except (signals.Stopped, KeyboardInterrupt):
            status = "KILLED"
            raise
        except BaseException as error:
            with suppress(Exception):  # a store that is away must not hide the error
                run.tags({"error": str(error)[:500] or type(error).__name__})
                if not isinstance(error, RnpError):
                    store.whole(mlflow.log_text)(traceback.format_exc(), "error.txt")
            raise
        finally:
            store.end_run(run.run_id, status)
            if status == "FINISHED":
                for call in run.when_finished:
                    call()


def _start(entry: str, experiment_id: str | None, opening: Mapping[str, str]) -> mlflow.ActiveRun:
    """Open a run that says from the first moment whose it is, so that the next call can close it if this one dies."""
    ours = {f"{PREFIX}entry": entry, abandoned.TAG: abandoned.own_tag(), **opening}
    parent = mlflow.active_run()
    if parent is None and ATTACH in os.environ:
        opened = attachable()
        started = store.whole(mlflow.start_run)(tags=ours)  # attaches to the project's run
        if ENTRY_POINT in opened.data.tags:  # `mlflow run` opened it
            process.end_with_parents()
    else:
        home = parent.info.experiment_id if parent else views.home(experiment_id)
        known = {ENTRY_POINT: entry, **ours}
        started = store.whole(mlflow.start_run)(experiment_id=home, nested=parent is not None, tags=known)
    return started


def _tidy(experiment_id: str) -> None:
    """Store the experiment's view; close the runs and remove the folders that killed processes left."""
    views.save(experiment_id)
    abandoned.close(views.searched(experiment_id))
    scratch.remove_abandoned()


def attachable() -> Run:
    """Return the run that `MLFLOW_RUN_ID` names, as `mlflow run` does.

    Raises:
        LineageError: there is no such run, or it is not one that was just opened for this call.
    """
    run_id = os.environ[ATTACH]
    try:
        run = store.client().get_run(run_id)
    except mlflow.MlflowException as error:
        reason = str(error).splitlines()[0][:200]
        raise LineageError(f"{ATTACH}={run_id} in the environment: {reason}; unset it, or correct it") from None
    begun = run.data.tags.get(f"{PREFIX}entry")
    state = "deleted" if run.info.lifecycle_stage != "active" else run.info.status
    if begun or state != "RUNNING":
        kind = f"a run of {begun} that is {state}" if begun else f"a run that is {state}"
        raise LineageError(f"{ATTACH}={run_id} in the environment names {kind}, which stays as it is: unset {ATTACH}")
    return run


def is_random_name(name: str) -> bool:
    """Whether MLflow made this run name up, as `handsome-sloth-675`: of its own lists of words, and a number."""
    lists = name_utils._GENERATOR_PREDICATES, name_utils._GENERATOR_NOUNS
    *words, number = name.split("-")
    known = [word in map(str.lower, some) for word, some in zip(words, lists, strict=False)]
    return len(words) == len(lists) and all(known) and number.isdecimal()


def _name_source(run_id: str) -> None:
    """Make the run name our own commit or none; MLflow uses the main script's or the project's folder."""
    client = store.client()
    new, gone = own_source(client.get_run(run_id).data.tags)
    client.log_batch(run_id, tags=[mlflow.entities.RunTag(*tag) for tag in new.items()])
    for name in gone:
        client.delete_tag(run_id, name)


def own_source(tags: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the tags to set, and the names of tags to delete, so that MLflow's tags name this package's commit.

    tags: those of a run or logged model. Branch and address are kept if they belong to that commit.
    """
    ours, found = git("rev-parse", "HEAD"), tags.get(COMMIT)
    foreign = [name for name in (COMMIT, BRANCH, ADDRESS) if name in tags and found != ours]
    if ours is None:
        return {}, foreign
    return {COMMIT: ours}, [name for name in foreign if name != COMMIT]


def git(*words: str) -> str | None:
    """Return git's output for this package's own repository; None if there is none, or git fails.

    A repository that only contains the package's environment, for example, is not its own.
    """
    return _ask_git(*words) if _is_repository() else None


@lru_cache
def _is_repository() -> bool:
    """Whether the folder that contains this package is the root of a repository that tracks the package."""
    top = _ask_git("rev-parse", "--show-toplevel")
    return (
        top is not None and Path(top).resolve() == HOME and _ask_git("ls-files", "--error-unmatch", TRACKED) is not None
    )


def _ask_git(*words: str) -> str | None:
    """Return git's output in the folder that contains this package; None if git fails."""
    # Without variables such as GIT_DIR, which a git hook sets.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(["git", *words], cwd=HOME, env=environment, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine_tags() -> dict[str, object]:
    """Return the tags of a run's provenance: versions, machine, and whether the working tree was dirty."""
    changed = git("status", "--porcelain")
    dirty = "unknown" if changed is None else bool(changed)
    versions = {name: version(name) for name in VERSIONS} | {"version": rnp_mlflow.__version__}
    cpu = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    return {**versions, "python": platform.python_version(), "machine": cpu, "dirty": dirty}


def prepare_store() -> None:
    """Connect to the tracking store; a new SQLite file is created under a lock (parallel creation corrupts it).

    Raises:
        LineageError: the store cannot be reached.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one bar per file, between our lines
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it would stand before the JSON object
    uri = mlflow.get_tracking_uri()
    try:
        file = location.sqlite_file(uri)
        with store.at_once(), FileLock(f"{file}.lock") if file else nullcontext():
            store.client().search_experiments(max_results=1)
    except LineageError:
        raise
    except Exception as error:  # of MLflow, of its database or of the network
        raise LineageError(
            f"the tracking store {location.shown(uri)} cannot be used: {location.reason(error)}"
        ) from None
