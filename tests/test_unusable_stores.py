"""A store that cannot be used, or refuses: one line with the reason, exit 2, soon, and nothing is left beside it."""

import os
import re
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from rnp_mlflow.cli import main

ATTACK = ["attack", "--train_size=600", "--test_size=100", "--training_epochs=1", "--width=4", "--device=cpu"]


def refused(entry: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line that the entry point prints."""
    started = time.monotonic()
    assert main(entry) == 2
    assert time.monotonic() - started < 20
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("sqlite:///{home}/garbage.db", "its file is not an SQLite database; set MLFLOW_TRACKING_URI"),
        ("sqlite:///{home}/folder", "it is a folder, not a file"),
        ("sqlite:///{home}/garbage.db/x/mlflow.db", "garbage.db cannot be written to"),
        ("sqlite:///{home}/fifo", "its file cannot be read and written"),
        ("postgresql://user:secret@localhost/x", r"//…@localhost/x cannot be used: the driver of its database is not"),
        ("mysql+pymysql://user:secret@localhost/x", r"pip install pymysql"),
        ("foo://x", "cannot be used"),
        ("http://[bad", "Invalid IPv6 URL"),
        ("http://localhost:1", "cannot be used"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line(
    uri: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "garbage.db").write_text("garbage" * 100)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    former = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri.format(home=tmp_path))
    try:
        line = refused(ATTACK, capsys)
    finally:
        mlflow.set_tracking_uri(former)
    assert re.search(words, line), line
    assert "secret" not in line
    assert "defect" not in line


def test_an_experiment_that_was_deleted_or_never_was_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    deleted = MlflowClient().create_experiment("gone")
    MlflowClient().delete_experiment(deleted)
    capsys.readouterr()  # MLflow's notes on the new store
    for experiment in ("999", deleted):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
        line = refused(ATTACK, capsys)
        assert "experiment" in line.lower()
        assert "defect" not in line


def test_the_lock_of_a_store_is_beside_it_whatever_the_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "a b"
    home.mkdir()
    monkeypatch.chdir(home)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/a%20b/mlflow.db")
    assert "no finished prune run" in refused(["report"], capsys)
    assert not list(tmp_path.glob("a%20b/*"))  # MLflow makes that folder, and leaves it empty
    assert {"mlflow.db", "mlflow.db.lock"} <= {path.name for path in home.iterdir()}
