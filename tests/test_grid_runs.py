"""Grids in a store, one step at a time: nothing is made twice, and a run stands for the whole."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from small import SETTINGS
from stores import artifacts, assert_none_running, enter, newest, runs

from rnp_mlflow.cli import main
from rnp_mlflow.errors import LineageError, StoreAway
from rnp_mlflow.grid import on_ray
from rnp_mlflow.grid.executors import Outcome, Task
from rnp_mlflow.steps import cell
from rnp_mlflow.tracking import abandoned, ledger

SMALL = {name: value for name, value in SETTINGS.items() if name not in ("threads", "train_size")}


def write(file: Path, axes: str, rest: str = "") -> Path:
    lines = [f"{name} = {json.dumps(value)}" for name, value in (SMALL | {"train_size": 600}).items()]
    file.write_text("\n".join(["[settings]", *lines, "[axes]", axes, rest]) + "\n")
    return file


def made() -> list[Run]:
    """Return the finished runs of steps."""
    return [
        run for run in runs() if run.info.status == "FINISHED" and run.data.tags["rnp.entry"] not in ("grid", "report")
    ]


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_grid_makes_each_step_once_and_the_second_time_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two attacks, two sweeps, and a cell that is impossible."""
    enter(tmp_path, monkeypatch)
    cases = (
        'cases = [{attack = "badnets"}, {attack = "sig"}, {attack = "badnets", target = 50}]\npruning_max = [0.8, 0.9]'
    )
    words = ["grid", f"--spec={write(tmp_path / 'g.toml', cases)}", "--workers=1", "--json"]
    capsys.readouterr()
    assert main([*words, "--dry-run"]) == 0
    forecast = told(capsys)
    assert {step: each["missing"] for step, each in forecast["steps"].items()} == {
        "attack": 3, "unlearn": 3, "recover": 3, "prune": 6,
    }  # fmt: skip
    assert forecast["seconds"] is None
    assert not runs(), "a dry run leaves none"

    assert main(words) == 1, "two cells failed"
    first, found = told(capsys), made()
    assert [row["state"] for row in first["cells"]] == ["done"] * 4 + ["failed"] * 2
    assert first["steps_made"] == len(found) == 2 + 2 + 2 + 4
    assert all("target=50 is not a class" in row["reason"] for row in first["cells"][4:])
    grid = newest("grid")
    assert (grid.info.status, grid.data.tags["rnp.cells"], grid.data.tags["rnp.failed"]) == ("FINISHED", "6", "2")
    assert grid.data.tags["rnp.state"] == "15 of 15 steps, 5 failed"
    children = {run.info.run_id for run in found if run.data.tags["mlflow.parentRunId"] == grid.info.run_id}
    assert {row["run_id"] for row in first["cells"][:4]} <= children == {run.info.run_id for run in found}
    table, compared = (
        list(csv.DictReader((artifacts(grid) / name).open())) for name in ("cells.csv", "comparison.csv")
    )
    assert [(row["suspect"], row["pruning_max"], row["n"]) for row in compared] == [
        ("badnets 10 %", "0.8", "1"), ("badnets 10 %", "0.9", "1"), ("sig 10 %", "0.8", "1"), ("sig 10 %", "0.9", "1"),
    ]  # fmt: skip
    assert "badnets 10 %" in (artifacts(grid) / "comparison.html").read_text()
    assert [(row["attack"], row["target"], row["pruning_max"]) for row in table[::2]] == [
        ("badnets", "–", "0.8"), ("sig", "–", "0.8"), ("badnets", "50", "0.8"),
    ]  # fmt: skip
    metrics = MlflowClient().get_run(table[0]["run_id"]).data.metrics
    assert float(table[0]["acc"]) == pytest.approx(metrics["acc"], abs=1e-4)
    assert table[0]["run_id"][:8] in grid.data.tags["mlflow.note.content"]

    assert main(words) == 1
    again = told(capsys)
    assert again["steps_made"] == 0
    assert len(made()) == len(found)
    assert [row["run_id"] for row in again["cells"]] == [row["run_id"] for row in first["cells"]]
    assert all("target=50" in row["reason"] for row in again["cells"][4:]), "the reason is that of the first time"
    assert main([*words, "--dry-run"]) == 0
    forecast = told(capsys)
    assert (forecast["failed"], forecast["seconds"]) == (1, 0)
    failed = len([run for run in runs() if run.info.status == "FAILED"])
    assert main([*words, "--retry-failed"]) == 1
    assert len([run for run in runs() if run.info.status == "FAILED"]) == failed + 1
    capsys.readouterr()

    assert main(["report", f"--grid={newest('grid').info.run_id}", "--group_by=attack", "--json"]) == 0
    assert [(group["attack"], group["n"]) for group in told(capsys)["groups"]] == [("badnets", 2), ("sig", 2)]
    assert main(["report", f"--grid={found[0].info.run_id}"]) == 2
    assert "is not the run of a grid" in capsys.readouterr().err

    lost = next(run for run in found if run.data.tags["rnp.entry"] == "recover")
    next(artifacts(lost).glob("mask_values.csv")).unlink()
    assert main([*words, "--pruning_max=0.8,0.85"]) == 1, "a mask was lost: it is made again for the new sweep"
    assert told(capsys)["steps_made"] == 2 + 1
    assert_none_running()


@pytest.mark.slow
def test_runs_that_no_grid_made_are_taken_and_known_from_then_on(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = made()
    file = write(tmp_path / "g.toml", "seed = [0]")
    words = ["grid", f"--spec={file}", "--workers=1", "--json", "--threads=2"]
    assert main(words) == 0
    first = told(capsys)
    assert first["steps_made"] == 0
    assert len(made()) == len(before)
    assert first["cells"][0]["run_id"] == next(r.info.run_id for r in before if r.data.tags["rnp.entry"] == "prune")
    assert main([*words, "--dry-run"]) == 0
    assert told(capsys)["steps"]["prune"]["there"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_what_another_grid_makes_is_waited_for_unless_that_grid_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    client, key = MlflowClient(), "k" * 64
    monkeypatch.setattr(ledger, "LOOK", 0.01)

    def opened(owner: str) -> str:
        tags = {**ledger.opening(key, owner, "c"), "rnp.entry": "prune"}
        return str(client.create_run("0", tags=tags).info.run_id)

    other = client.create_run("0", tags={abandoned.TAG: abandoned.own_tag(), "rnp.entry": "grid"}).info.run_id
    first = opened(other)
    own = opened("mine")
    assert ledger.is_first(first, key, other, ["0"])
    assert not ledger.is_first(own, key, "mine", ["0"]), "of two that begin at once, one goes on"
    assert ledger.close_lost(["0"], "mine") == 1, "only what is this grid's own: the other one is alive"
    looks: list[float] = []

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            client.set_tag(other, ledger.BEAT, "1000")  # a sign of life of long ago

    monkeypatch.setattr("rnp_mlflow.tracking.ledger.time.sleep", look)
    assert ledger.wait_for_other(key, "mine", ["0"]) is None
    assert len(looks) == 3
    assert ledger.close_lost(["0"], "mine") == 1
    assert client.get_run(first).info.status == "KILLED"
    client.set_terminated(other)


def test_bad_input_is_one_line_exit_2_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(tmp_path, monkeypatch)
    cases = {
        "--seed=0,-1": "seed=-1",
        f"--data_dir={tmp_path}/gone --dataset=folder": "gone: there is no such file or folder",
        f"--spec={tmp_path}/gone.toml": "gone.toml: No such file",
        "--workers=0": "workers=0",
        "--address=127.0.0.1:1": "no Ray cluster answers" if on_ray.is_installed() else "rnp-mlflow[grid]",
    }
    for given, words in cases.items():
        if "--address" in given and on_ray.is_installed():
            continue  # Ray waits for a minute
        capsys.readouterr()
        assert main(["grid", *given.split()]) == 2, given
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ")
        assert words in line
    monkeypatch.setattr(on_ray, "is_installed", lambda: False)
    assert main(["grid", "--workers=2"]) == 2
    assert "pip install 'rnp-mlflow[grid]'" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "lost"), [(StoreAway("away"), True), (LineageError("deleted"), False)])
def test_a_step_is_tried_again_if_the_store_was_away(
    error: LineageError, lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(task: Task) -> Outcome:
        raise error

    enter(tmp_path, monkeypatch)
    monkeypatch.setattr(cell, "find_or_make", fail)
    assert cell.run(Task("k", "attack", {}, None, "g", "0", "store")) == Outcome(reason=str(error), lost=lost)


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    """A signal to the driver ends its step and itself as KILLED."""
    words = [sys.executable, "-m", "rnp_mlflow", "grid", "--workers=1", "--attack=badnets,sig", "--training_epochs=50"]
    env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    process = subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("attack: run"):
            break
    process.send_signal(15)
    assert process.wait(120) == 143
    client = MlflowClient(env["MLFLOW_TRACKING_URI"])
    assert {run.info.status for run in client.search_runs(["0", "1"])} == {"KILLED"}
