"""Runs that were stored when parameters and metrics had other names are repeated, compared and built on."""

import json
import sqlite3
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from stores import artifacts, enter, newest, runs

from rnp_mlflow import config
from rnp_mlflow.artifacts import renamed
from rnp_mlflow.cli import main
from rnp_mlflow.tracking import contents

pytestmark = pytest.mark.slow
SETTINGS = {
    "threads": 1, "training_epochs": 1, "train_size": 300, "test_size": 60, "width": 4, "unlearning_epochs": 1,
    "recovering_epochs": 1, "proxy_steps": 2, "refine": 0, "clean_threshold": 0.99, "pruning_step": 0.4,
    "device": "cpu", "unlearning_augment": "yes", "grad_clip_norm": 5,
}  # fmt: skip
FORMER_PARAMETERS = {now: (former, values) for former, (now, values) in config.RENAMED.items()}
FORMER_DETECTION = {now: former for former, now in renamed.DETECTION.items()}


def with_former_names(settings: dict[str, object]) -> dict[str, object]:
    found = {}
    for name, value in settings.items():
        former, values = FORMER_PARAMETERS.get(name, (name, {}))
        found[former] = {now: word for word, now in values.items()}.get(value, value) if values else value
    return found


def make_former(home: Path) -> None:
    """Rewrite a store to the form of version 0.1.0: former names, no manifests."""
    for record in home.glob("mlruns/0/*/artifacts/settings.json"):
        content = json.loads(record.read_text())
        content["settings"] = {step: with_former_names(values) for step, values in content["settings"].items()}
        record.write_text(json.dumps(content))
    for verdict in home.glob("mlruns/0/*/artifacts/verdict.json"):
        content = json.loads(verdict.read_text())
        verdict.write_text(json.dumps({FORMER_DETECTION.get(name, name): value for name, value in content.items()}))
        for file, name in contents.METRIC_OF_OPTIONAL.items():
            if (verdict.parent / file).is_file():
                MlflowClient().log_metric(verdict.parents[1].name, name, 0)  # logged until manifests said it
    for manifest in home.glob("mlruns/0/*/artifacts/manifest.json"):
        manifest.unlink()
    with sqlite3.connect(home / "mlflow.db") as store:
        store.execute("DELETE FROM tags WHERE key = 'rnp.manifest'")
        for former, now in renamed.METRICS.items():
            for table in ("metrics", "latest_metrics"):
                store.execute(f"UPDATE {table} SET key = ? WHERE key = ?", (former, now))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one prune, in the former form."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        enter(home, patch)
        assert main(["prune", *(f"--{name}={value}" for name, value in SETTINGS.items())]) == 0
    make_former(home)
    return home


@pytest.fixture(autouse=True)
def inside(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(store, monkeypatch)


def test_the_store_has_the_former_form(store: Path) -> None:
    unlearned = newest("unlearn")
    assert {"verdict/score", "verdict/faded"} <= unlearned.data.metrics.keys()
    assert not {"verdict/target_share", "verdict/forgetting_rate"} & unlearned.data.metrics.keys()
    record = json.loads((artifacts(unlearned) / "settings.json").read_text())["settings"]["unlearn"]
    assert (record["unlearning_views"], record["clip"]) == ("augmented", 5.0)


def test_a_former_run_is_built_on_and_its_parameters_are_held_to(capsys: pytest.CaptureFixture[str]) -> None:
    unlearned = newest("unlearn").info.run_id
    asked = ["recover", f"--unlearn_run_id={unlearned}", "--threads=1", "--device=cpu", "--recovering_epochs=1"]
    assert main([*asked, "--unlearning_augment=no"]) == 2
    assert f"unlearning_augment=no, but run {unlearned} was made with unlearning_augment=yes" in capsys.readouterr().err
    assert main([*asked, "--unlearning_augment=yes", "--grad_clip_norm=5"]) == 0
    sweep = ["--pruning_step=0.4", "--refine=0", "--threads=1", "--device=cpu"]
    assert main(["prune", f"--recover_run_id={newest('recover').info.run_id}", *sweep]) == 0
    metrics = newest("prune").data.metrics
    assert metrics["verdict/target_share"] == newest("unlearn").data.metrics["verdict/score"]


def test_a_repetition_of_a_former_run_is_identical(capsys: pytest.CaptureFixture[str]) -> None:
    first = runs(entry="prune")[-1]
    assert main(["rerun", f"--run_id={first.info.run_id}"]) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert out.strip().splitlines()[-1] == "identical"
    assert out.count(": identical") == 4
