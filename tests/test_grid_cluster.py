"""Grids on a real Ray cluster of two nodes with a real `mlflow server` (`grid_cluster.py`), all on loopback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
NODE_ABSENT = 77


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What happened on the cluster; skipped if this machine cannot have one."""
    if "RNP_CLUSTER" not in os.environ:
        pytest.skip("takes a quarter of an hour; RNP_CLUSTER=1 runs it")
    pytest.importorskip("ray", reason="the extra `grid` is not installed")
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rn", "ip", "link"], capture_output=True).returncode
    ):
        pytest.skip("no network namespace can be made here (unshare -rn)")
    home = tmp_path_factory.mktemp("cluster")
    inside = f"ip link set lo up; exec {sys.executable} {HERE / 'grid_cluster.py'} {home}"
    chosen = ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")  # of the tests around it; a grid has its own
    env = {name: value for name, value in os.environ.items() if name not in chosen} | {
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])
    }
    done = subprocess.run(
        ["unshare", "-rn", "bash", "-c", inside], env=env, capture_output=True, text=True, timeout=1800
    )
    if done.returncode == NODE_ABSENT:
        pytest.skip(f"a node of Ray did not start: {done.stderr.strip().splitlines()[-1][:200]}")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((home / "told.json").read_text())


def test_a_node_dies_and_all_cells_finish_but_the_impossible_one(told: Any) -> None:
    found = told["node"]
    assert found["killed"], "the node was working"
    assert (found["code"], found["failed"], found["running"], found["twice"]) == (1, 1, [], 0)
    assert "was lost (attempt 1)" in found["log"]
    assert [cell["state"] for cell in found["cells"]] == ["done", "done", "failed"]
    assert "target=50 is not a class" in found["cells"][2]["reason"]
    assert found["steps"] == 2 * 4


def test_results_are_those_of_one_process_bit_for_bit(told: Any) -> None:
    assert len(told["alone"]) == 2 * 4
    for key, alone in told["alone"].items():
        assert told["cluster"][key] == alone, key
    assert told["serial"]["code"] == 1


def test_a_driver_that_was_killed_and_started_again_makes_what_is_missing(told: Any) -> None:
    found = told["driver"]
    assert 2 <= found["there"] < 5
    assert found["steps_made"] == 5 - found["there"]
    assert (found["code"], found["running"], found["twice"]) == (0, [], 0)


def test_two_drivers_at_once_waste_at_most_one_step(told: Any) -> None:
    found = told["two"]
    assert (found["codes"], found["cells"], found["running"]) == ([0, 0], [2, 2], [])
    assert found["twice"] <= 1
    assert 8 <= sum(found["made"]) <= 9


def test_two_nodes_and_a_store_of_one_machine_are_refused(told: Any) -> None:
    found = told["refused"]
    assert found["code"] == 2
    last = found["log"].strip().splitlines()[-1]
    assert "is a store of one machine, and there are 2 nodes" in last
