"""Shares of a GPU in a grid. The GPU is one that Ray is told of: it counts shares, whatever is there."""

import os
import time
from typing import Any

import pytest

from rnp_mlflow.errors import ConfigError
from rnp_mlflow.grid.executors import Outcome, Task
from rnp_mlflow.grid.on_ray import OnRay, is_installed
from rnp_mlflow.grid.spec import Resources


@pytest.mark.slow
def test_two_halves_of_a_gpu_run_at_once_and_a_step_without_one_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_installed():  # it is not imported here: Ray reads its environment on import
        pytest.skip("the extra `grid` is not installed")
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 1}')
    half, none = Resources(gpus=0.5), Resources()

    def body(task: Task) -> Outcome:
        begun = time.time()
        time.sleep(2)
        return Outcome(f"{begun} {time.time()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")

    executor = OnRay(body, None, 4)
    try:
        executor.check_resources({"attack": half})
        with pytest.raises(ConfigError, match="no node has what attack asks for: threads=1, gpus=2"):
            executor.check_resources({"attack": Resources(gpus=2)})
        for key, needs in {"a": half, "b": half, "c": half, "cpu": none}.items():
            executor.submit(Task(key, "attack", {}, None, "grid", "0", "store"), needs)
        found: dict[str, Any] = {}
        end = time.monotonic() + 120
        while len(found) < 4 and time.monotonic() < end:
            found |= {task.key: str(outcome.run_id).split(" ") for task, outcome in executor.wait(1)}
    finally:
        executor.close()
    assert [found[key][2] for key in ("a", "b", "c", "cpu")] == ["0", "0", "0", ""]
    order = sorted((float(found[key][0]), float(found[key][1])) for key in ("a", "b", "c"))
    assert order[1][0] < order[0][1], "two at once"
    assert order[2][0] >= order[0][1], "the third waits"
