"""Several processes that need the same steps: each is made once, and nothing is lost."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import IO

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from servers import postgres, serve
from small import SETTINGS

from rnp_mlflow.cli import main
from rnp_mlflow.tracking import location
from rnp_mlflow.tracking.turns import turn

ROOT = Path(__file__).parents[1]
NAMES = ("width", "train_size", "test_size", "training_epochs", "ratio", "unlearning_epochs", "recovering_epochs")
RECOVER = ["recover", *(f"--{name}={SETTINGS[name]}" for name in NAMES), "--device=cpu", "--threads=1"]
CALLS = 8 if "RNP_LONG" in os.environ else 4
USER = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "a long password"}


def calls_at_once(home: Path, uri: str, **env: str) -> None:
    """Make `CALLS` masks of one unlearned model at once, each with its own alpha."""
    left_out = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    inherited |= {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri}
    calls = [
        subprocess.Popen(
            [sys.executable, "-m", "rnp_mlflow", *RECOVER, f"--alpha=0.{number}"],
            cwd=home, env=inherited | env, stderr=subprocess.PIPE, text=True,
        )
        for number in range(1, CALLS + 1)
    ]  # fmt: skip
    for call in calls:
        _, errors = call.communicate(timeout=400)
        assert call.returncode == 0, errors[-2000:]


def states() -> Counter[tuple[str, str]]:
    """Return how many runs of each entry point are in each state."""
    client = MlflowClient()
    experiments = [each.experiment_id for each in client.search_experiments()]
    return Counter((run.data.tags["rnp.entry"], run.info.status) for run in client.search_runs(experiments))


WANTED = {("attack", "FINISHED"): 1, ("unlearn", "FINISHED"): 1, ("recover", "FINISHED"): CALLS}


@pytest.mark.slow
def test_calls_share_a_store_that_is_not_there_yet(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    calls_at_once(tmp_path, uri)
    mlflow.set_tracking_uri(uri)
    assert states() == WANTED


@pytest.mark.slow
def test_calls_share_a_server_with_postgres(tmp_path: Path) -> None:
    words = ["server", "--workers", "2", "--backend-store-uri"]
    with postgres() as database, serve(*words, database, ready="/health", home=tmp_path) as url:
        calls_at_once(tmp_path, url)
        mlflow.set_tracking_uri(url)
        assert states() == WANTED


@pytest.mark.slow
def test_a_server_that_wants_a_password_gets_it_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("flask_wtf")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path}/auth.db\n"
        f"admin_username = {USER['MLFLOW_TRACKING_USERNAME']}\nadmin_password = {USER['MLFLOW_TRACKING_PASSWORD']}\n"
    )
    secrets = {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "x"}
    words = ["server", "--app-name", "basic-auth", "--workers", "1", "--backend-store-uri", "sqlite:///runs.db"]
    former = mlflow.get_tracking_uri()
    with serve(*words, ready="/health", home=tmp_path, **secrets) as url:
        mlflow.set_tracking_uri(url)
        try:
            assert main(["attack", *RECOVER[1:5], "--device=cpu"]) == 2
            (line,) = capsys.readouterr().err.strip().splitlines()
            assert line.endswith("set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
            for name, value in USER.items():
                monkeypatch.setenv(name, value)
            assert main(["attack", *RECOVER[1:5], "--device=cpu"]) == 0
            assert states() == {("attack", "FINISHED"): 1}
        finally:
            mlflow.set_tracking_uri(former)


def test_stores_of_two_folders_are_two_although_their_address_is_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    try:
        for name in "ab":
            (tmp_path / name).mkdir()
            monkeypatch.chdir(tmp_path / name)
            assert location.address() == f"sqlite:///{tmp_path}/{name}/mlflow.db"
    finally:
        mlflow.set_tracking_uri(former)


def test_a_process_takes_over_from_one_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "import sys, time\nfrom rnp_mlflow.tracking.turns import turn\n"
    code += "with turn('attack', 'abc'):\n    print('taken', flush=True)\n    time.sleep(60)\n"
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    started = []

    def start() -> tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]:
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stderr is not None
        return process, process.stdout, process.stderr

    try:
        with turn("attack", "another"):
            first, told, _ = start()
            assert told.readline() == b"taken\n"
            _, told, warned = start()
            assert warned.readline() == b"attack: another process makes it; this one waits\n"
            first.kill()
            assert told.readline() == b"taken\n"
    finally:
        for process in started:
            process.kill()
            process.wait()
