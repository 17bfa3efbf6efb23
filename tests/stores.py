"""A working folder with its own store of runs, and what is in that store."""

from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient


def work_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Work in `folder`, with the store that is there or is made there, until `patch` is undone."""
    patch.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")


def newest(entry: str) -> mlflow.entities.Run:
    """The newest run of an entry point."""
    return MlflowClient().search_runs(["0"], f"tags.`rnp.entry` = '{entry}'", order_by=["start_time DESC"])[0]


def artifacts(run: mlflow.entities.Run) -> Path:
    """The folder of a run's files."""
    return Path(run.info.artifact_uri.removeprefix("file://"))
