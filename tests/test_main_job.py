"""The README's main job, as a stranger runs it: one command through MLflow, on the real default."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home with the default `mlflow run . -e prune` finished in it, and what that printed."""
    home = tmp_path_factory.mktemp("home")
    bin_folder = Path(sys.executable).parent
    env = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    env["PATH"] = f"{bin_folder}{os.pathsep}{env['PATH']}"  # --env-manager local takes the first python on it
    asked = [str(bin_folder / "mlflow"), "run", str(ROOT), "-e", "prune", "--env-manager", "local"]
    done = subprocess.run(asked, cwd=home, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return home, done.stdout


def test_the_default_removes_the_backdoor_without_the_trigger(finished: tuple[Path, str]) -> None:
    home, told = finished
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    runs = client.search_runs(["0"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sorted(run.data.tags["rnp.entry"] for run in runs) == ["attack", "prune", "recover", "unlearn"]
    prune = next(run for run in runs if run.data.tags["rnp.entry"] == "prune")
    assert prune.data.tags["mlflow.project.entryPoint"] == "prune"
    found = prune.data.metrics
    assert found["asr_before"] >= 0.95
    assert found["asr"] <= 0.05
    assert found["acc_before"] - found["acc"] <= 0.05
    summary = json.loads((home / "mlruns/0" / prune.info.run_id / "artifacts/summary.json").read_text())
    assert summary["selected"] in ("chosen", "repaired")
    assert prune.info.run_id in told
    assert "mlflow ui" in told


def test_its_rerun_is_identical_to_the_bit(finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    home, _ = finished
    monkeypatch.chdir(home)
    uri = f"sqlite:///{home}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    prune = next(r for r in MlflowClient(uri).search_runs(["0"]) if r.data.tags["rnp.entry"] == "prune")
    asked = [sys.executable, "-m", "rnp_mlflow", "rerun", f"--run_id={prune.info.run_id}"]
    env = os.environ | {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(asked, cwd=home, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1] == "identical"
    assert done.stdout.count(": identical") == 4
