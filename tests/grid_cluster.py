"""Grids on a Ray cluster of two nodes, with a real `mlflow server`: run in a network namespace that has only loopback.

`python tests/grid_cluster.py HOME` prints what happened as JSON; `tests/test_grid_cluster.py` judges it. With another
interface present Ray takes its address, and nodes on 127.0.0.1 do not find each other.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_EXPERIMENT_NAME": "grid", "RAY_worker_niceness": "0",
}  # fmt: skip

import mlflow
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from ray.cluster_utils import Cluster
from servers import serve
from small import SETTINGS

NODE_ABSENT = 77  # exit code: a node did not start, which is not this project's fault
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
PATIENCE = 600
SMALL = {name: value for name, value in SETTINGS.items() if name not in ("threads", "device")}
CASES = '[{attack = "badnets"}, {attack = "sig"}, {attack = "badnets", target = 50}]'


def spec(home: Path, name: str, axes: dict[str, str], **settings: object) -> Path:
    """Write a grid's spec."""
    file = home / f"{name}.toml"
    lines = [f"{key} = {str(value).lower()}" for key, value in (SMALL | settings).items()]
    lines += ["[axes]", *(f"{key} = {value}" for key, value in axes.items())]
    file.write_text("\n".join(["[settings]", *lines]) + "\n")
    return file


def driver(file: Path, store: str, *words: str) -> "subprocess.Popen[str]":
    """Start a grid."""
    command = [sys.executable, "-m", "rnp_mlflow", "grid", f"--spec={file}", "--json", *words]
    env = os.environ | {"MLFLOW_TRACKING_URI": store}
    return subprocess.Popen(
        command, cwd=file.parent, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def result(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Wait for a grid; return what it printed."""
    out, err = process.communicate(timeout=PATIENCE)
    print(out[:1000], err[-3000:], file=sys.stderr)
    return {"code": process.returncode, **(json.loads(out) if out.strip() else {}), "log": err}


def runs(store: str) -> list[Run]:
    """Return all runs of the experiment of the grids."""
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("grid")
    return list(client.search_runs([experiment.experiment_id], max_results=1000)) if experiment else []


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def works_on(run: Run, raylet: int) -> bool:
    """Whether a run is being made by a process of this node."""
    pid = run.data.tags["rnp.process"].split("/")[2]
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == raylet
    except OSError:
        return False


def finished(store: str) -> dict[str, list[Run]]:
    """Return key → the finished runs of that step."""
    found: dict[str, list[Run]] = {}
    for run in runs(store):
        if run.info.status == "FINISHED" and "rnp.cell" in run.data.tags:
            found.setdefault(run.data.tags["rnp.cell"], []).append(run)
    return found


def figures(store: str) -> dict[str, Any]:
    """Return key → what a step made: the digest of its files, and its metrics."""
    return {key: [made[0].data.tags["rnp.output"], made[0].data.metrics] for key, made in finished(store).items()}


def state(store: str) -> dict[str, Any]:
    """Return how many runs are RUNNING, and how many steps were made more than once."""
    every = finished(store)
    return {
        "running": [run.info.run_id for run in runs(store) if run.info.status == "RUNNING"],
        "twice": sum(len(made) - 1 for made in every.values()),
        "steps": len(every),
    }


def add_node(nodes: Cluster) -> None:
    """Start one more node, and wait for it."""
    nodes.add_node(**NODE)
    nodes.wait_for_nodes(timeout=180)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start a head and one more node, of one CPU each."""
    try:
        found = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        add_node(found)
    except Exception as error:
        print(f"a node did not start: {error}", file=sys.stderr)
        sys.exit(NODE_ABSENT)
    try:
        yield found
    finally:
        found.shutdown()


def node_dies(home: Path, store: str, nodes: Cluster) -> dict[str, Any]:
    """Kill one node while it works on a step, after others have finished; one cell is impossible."""
    (second,) = nodes.worker_nodes
    raylet = second.all_processes["raylet"][0].process.pid
    process = driver(spec(home, "first", {"cases": CASES}), store, f"--address={nodes.address}")

    def busy() -> bool:
        own = [run for run in runs(store) if run.data.tags.get("rnp.cell")]
        return any(run.info.status == "FINISHED" for run in own) and any(
            run.info.status == "RUNNING" and works_on(run, raylet) for run in own
        )

    wait_until(lambda: busy() or process.poll() is not None)
    killed = process.poll() is None
    nodes.remove_node(second, allow_graceful=False)
    found = result(process)
    add_node(nodes)
    return {**found, "killed": killed, **state(store)}


def driver_dies(home: Path, store: str, nodes: Cluster) -> dict[str, Any]:
    """Kill the driver in the middle, and start the same grid again."""
    file, before = spec(home, "second", {"pruning_max": "[0.8, 0.9]"}, seed=1), len(finished(store))
    process = driver(file, store, f"--address={nodes.address}")
    wait_until(lambda: len(finished(store)) >= before + 2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = len(finished(store)) - before
    found = result(driver(file, store, f"--address={nodes.address}"))
    return {**found, "there": there, **state(store)}


def two_drivers(home: Path, store: str, nodes: Cluster) -> dict[str, Any]:
    """Start the same grid twice at once."""
    file = spec(home, "third", {"attack": '["badnets", "sig"]'}, seed=2)
    both = [driver(file, store, f"--address={nodes.address}") for _ in range(2)]
    found = [result(process) for process in both]
    return {"codes": [each["code"] for each in found], "made": [each.get("steps_made") for each in found],
            "cells": [len(each.get("cells", [])) for each in found], **state(store)}  # fmt: skip


def main(home: Path) -> None:
    """Print what happened."""
    (home / "serial").mkdir()
    alone = f"sqlite:///{home}/serial/mlflow.db"
    words = [
        "server",
        "--backend-store-uri",
        f"sqlite:///{home}/mlflow.db",
        "--artifacts-destination",
        str(home / "art"),
    ]
    told: dict[str, Any] = {}
    with serve(*words, ready="/health", home=home) as store, cluster() as nodes:
        mlflow.set_tracking_uri(store)
        for name, scenario in (("node", node_dies), ("driver", driver_dies), ("two", two_drivers)):
            start = time.monotonic()
            told[name] = scenario(home, store, nodes)
            told[name]["seconds"] = round(time.monotonic() - start, 1)
        told["cluster"] = figures(store)
        told["refused"] = result(driver(home / "first.toml", alone, f"--address={nodes.address}"))
    told["serial"] = result(driver(home / "first.toml", alone, "--workers=1"))
    told["alone"] = figures(alone)
    (home / "told.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
