"""The chain against a tracking server with proxied artifacts: nothing may rely on local artifact paths."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from servers import serve

from rnp_mlflow.cli import main

pytestmark = pytest.mark.slow

SMALL = ["--width=4", "--train_size=600", "--test_size=100", "--training_epochs=1", "--ratio=0.2",
         "--unlearning_epochs=2", "--recovering_epochs=2", "--pruning_step=0.3", "--device=cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("server")
    words = ["server", "--workers", "1", "--backend-store-uri", f"sqlite:///{home}/server.db",
             "--artifacts-destination", str(home / "kept")]  # fmt: skip
    with serve(*words, ready="/health", home=home, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false") as url:
        yield url


def test_a_chain_runs_and_is_reused_on_a_server(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server)
    try:
        assert main(["prune", *SMALL]) == 0
        assert f"{server}/#/experiments/0/runs/" in capsys.readouterr().out
        assert main(["prune", *SMALL, "--acc_ratio=0.5"]) == 0
        assert capsys.readouterr().err.count("(same inputs)") == 3
        runs = MlflowClient().search_runs(["0"])
        assert {run.info.status for run in runs} == {"FINISHED"}
        assert all(run.info.artifact_uri.startswith("mlflow-artifacts:/") for run in runs)
        assert not list(tmp_path.iterdir())
    finally:
        mlflow.set_tracking_uri(before)


def test_a_store_that_is_not_there_is_one_line_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        assert main(["prune", *SMALL, "--recover_run_id=" + "0" * 32]) == 2
        assert "http://127.0.0.1:9 cannot be used" in capsys.readouterr().err.strip().splitlines()[-1]
    finally:
        mlflow.set_tracking_uri(before)
