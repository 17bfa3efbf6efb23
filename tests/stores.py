"""A working folder with its own store of runs, and what is in that store."""

from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient


def enter(home: Path, patch: pytest.MonkeyPatch) -> None:
    """Make `home` the working folder, and its `mlflow.db` MLflow's tracking store."""
    patch.chdir(home)
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")


def runs(**tags: str) -> list[Run]:
    """Return the runs with these tags of ours, newest first."""
    rule = " and ".join(f"tags.`rnp.{name}` = '{value}'" for name, value in tags.items())
    return list(MlflowClient().search_runs(["0"], rule, order_by=["start_time DESC"]))


def newest(entry: str) -> Run:
    """Return the newest run of an entry point."""
    return runs(entry=entry)[0]


def artifacts(run: Run) -> Path:
    """Return the folder of a run's artifacts."""
    return Path(run.info.artifact_uri.removeprefix("file://"))


def assert_none_running() -> None:
    """Assert that every run of the store has ended, and that this process has none open."""
    assert not MlflowClient().search_runs(["0"], "status = 'RUNNING'")
    assert mlflow.active_run() is None
