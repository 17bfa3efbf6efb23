"""Thousands of cells: of a step that does nothing but log, and what it takes to look all of them up."""

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from stores import assert_none_running, enter

from rnp_mlflow.cli import main
from rnp_mlflow.grid.executors import Outcome, Task
from rnp_mlflow.steps import cell
from rnp_mlflow.tracking import ledger, lineage, store

pytestmark = pytest.mark.slow
LIMIT = 300  # seconds of this process, for all
FIGURES = ("acc_before", "acc", "asr_before", "asr", "ra", "der")


def log_only(task: Task) -> Outcome:
    """Stand in for a step: log what a step logs, and make nothing."""
    client, number = MlflowClient(), int(task.key[:8], 16) / 16**8
    tags = ledger.opening(task.key, task.grid_id, lineage.code_digest())
    tags |= {"rnp.entry": task.step, "rnp.inputs": task.key, "rnp.attack": str(task.values.get("attack"))}
    run_id = client.create_run(task.experiment_id, tags=tags, run_name=task.step).info.run_id
    metrics = [Metric(name, number, 0, 0) for name in FIGURES] if task.step == "prune" else []
    params = [Param(name, str(value)) for name, value in task.values.items()]
    client.log_batch(run_id, metrics, params, [RunTag("rnp.seconds", "1.5")])
    client.set_terminated(run_id)
    return Outcome(run_id, made=True)


def test_two_thousand_cells_are_made_once_looked_up_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(tmp_path, monkeypatch)
    monkeypatch.setattr(cell, "run", log_only)
    asked = ["grid", "--attack=badnets,blended,sig,wanet", "--seed=0,1,2,3,4", "--workers=1", "--json"]
    asked += [f"--pruning_max={','.join(str(k / 100) for k in range(1, 101))}"]
    start = time.process_time()

    def call(*words: str) -> Any:
        begun, clock = time.process_time(), time.monotonic()
        assert main([*asked, *words]) == 0
        told = json.loads(capsys.readouterr().out)
        with capsys.disabled():
            print(f"{asked[0]}: {time.process_time() - begun:.0f} s of CPU, {time.monotonic() - clock:.0f} s")
        return told

    first = call()
    assert (len(first["cells"]), first["steps_made"]) == (2000, 2060)
    again = call()
    assert again["steps_made"] == 0
    assert [row["run_id"] for row in again["cells"]] == [row["run_id"] for row in first["cells"]]
    planned = call("--dry-run")
    assert planned["steps"]["prune"] == {"steps": 2000, "there": 2000, "missing": 0}
    asked = ["report", f"--grid={again['run_id']}", "--group_by=attack", "--json"]
    groups = call()["groups"]
    assert [(group["attack"], group["n"]) for group in groups] == [
        (name, 500) for name in ("badnets", "blended", "sig", "wanet")
    ]
    figures = [float(row["der"]) for row in first["cells"] if row["attack"] == "sig"]
    assert groups[2]["der_mean"] == pytest.approx(sum(figures) / 500, abs=1e-4)
    assert time.process_time() - start < LIMIT
    assert_none_running()


def fill(home: Path, count: int) -> None:
    """Write so many finished steps into the tables of the store, with as much in each as a prune run has."""
    runs, tags, params, metrics = [], [], [], []
    known = {"rnp.code": lineage.code_digest(), "rnp.grid": "g", "rnp.entry": "prune"}
    for k in range(count):
        uuid = f"{k:032x}"
        where = (f"mlruns/{uuid}", 0, "u", "LOCAL", "s", "prune", "")
        runs.append((uuid, f"r{k}", "FINISHED", k, k + 1, "active", *where))
        own = known | {"rnp.cell": f"{k:064x}"} | {f"rnp.t{n}": "x" * 40 for n in range(25)}
        tags += [(key, value, uuid) for key, value in own.items()]
        params += [(f"p{n}", "0.5", uuid) for n in range(25)]
        metrics += [(f"m{n}", 0.5, 0, uuid, 0, 0) for n in range(15)]
    columns = "run_uuid, name, status, start_time, end_time, lifecycle_stage, artifact_uri, experiment_id"
    columns += ", user_id, source_type, source_name, entry_point_name, source_version"
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("DELETE FROM runs")
        for table in ("tags", "params", "latest_metrics"):
            database.execute(f"DELETE FROM {table}")
        database.executemany(f"INSERT INTO runs ({columns}) VALUES ({', '.join('?' * 13)})", runs)
        database.executemany("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", tags)
        database.executemany("INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)", params)
        into = "INSERT INTO latest_metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES (?, ?, ?, ?, ?, ?)"
        database.executemany(into, metrics)


@pytest.mark.parametrize("count", [100, 1000, 10_000])
def test_the_look_up_is_one_paged_query(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(tmp_path, monkeypatch)
    MlflowClient().search_experiments()
    fill(tmp_path, count)
    asked: list[str] = []
    whole: Callable[..., Any] = store.whole

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        asked.append(call.__name__)
        found: Callable[..., Any] = whole(call)
        return found

    monkeypatch.setattr(store, "whole", counted)
    start = time.process_time()
    found = ledger.find(["0"], lineage.code_digest())
    seconds = time.process_time() - start
    print(f"{count} runs: {seconds:.2f} s")
    assert len(found.finished) == count
    assert asked == ["search_runs"] * max(1, -(-count // 1000))
    assert seconds < 2 + count / 100
