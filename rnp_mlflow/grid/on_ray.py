"""Steps side by side, on this machine or on the nodes of a cluster: tasks of Ray Core."""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any, TypeVar

from rnp_mlflow.errors import ConfigError
from rnp_mlflow.grid.executors import Body, Outcome, Task
from rnp_mlflow.grid.spec import Resources

T = TypeVar("T")
CALLS = 100  # steps of a process on the CPU: a fresh one imports torch and MLflow first. On a GPU each has its own.
STORE = 80 << 20  # bytes of Ray's object store, which holds a few words a task
GIB = 1 << 30
PATIENCE = 120  # seconds for every node to answer
# Ray reports nobody's use of it; a task without a GPU sees none; under `uv run`, workers have the driver's environment
# (Ray's own way copies the working folder, and installs all that it asks for, for each of them).
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}  # fmt: skip


def is_installed() -> bool:
    """Whether the extra `grid` is there."""
    return importlib.util.find_spec("ray") is not None


class OnRay:
    """Runs tasks on a cluster. Retries are the caller's: it closes what a lost attempt left behind before the next."""

    def __init__(self, body: Body, address: str | None, cpus: int):
        """Connect to a cluster; without an address start one on this machine that has so many CPUs.

        Raises:
            ConfigError: Ray is not installed, or the cluster does not answer.
        """
        if not is_installed():
            raise ConfigError("address and workers above 1 need Ray: pip install 'rnp-mlflow[grid]', or give workers=1")
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.quiet = ExitStack()
        self.quiet.enter_context(stdout_as_stderr())
        import ray

        self.ray, self.body, self.is_local = ray, body, address is None
        self.running: dict[Any, Task] = {}
        self.remote: dict[Resources, Any] = {}
        how: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address is None:
            how |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": STORE}
        try:
            ray.init(address=address or "local", **how)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            self.quiet.close()
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ConfigError(f"address={address}: no Ray cluster answers: {reason}") from None

    def nodes(self) -> list[dict[str, Any]]:
        """Return what Ray says of each living node."""
        return [node for node in self.ray.nodes() if node["Alive"]]

    def on_each_node(self, function: Callable[..., T], *values: object) -> dict[str, T]:
        """Return node → what a function returns there.

        Raises:
            ConfigError: a node does not answer, or the function fails there.
        """
        place = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        remote = self.ray.remote(num_cpus=0, max_retries=0)(function)
        names = {f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})": node["NodeID"] for node in self.nodes()}
        requested = {
            name: remote.options(scheduling_strategy=place(node, soft=False)).remote(*values)
            for name, node in names.items()
        }
        found: dict[str, T] = {}
        for name, answer in requested.items():
            try:
                found[name] = self.ray.get(answer, timeout=PATIENCE)
            except self.ray.exceptions.RayError as error:
                reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1][:200]
                raise ConfigError(f"node {name} cannot be used: {reason}") from None
        return found

    def check_resources(self, wanted: Mapping[str, Resources]) -> None:
        """Refuse what no node has: its tasks would wait for ever.

        Raises:
            ConfigError: the message names the step and what it asks for.
        """
        nodes = [node["Resources"] for node in self.nodes()]
        for step, needs in wanted.items():
            requested = {"CPU": needs.threads, "GPU": needs.gpus, "memory": needs.memory_gb * GIB}
            if not any(all(node.get(name, 0) >= amount for name, amount in requested.items()) for node in nodes):
                raise ConfigError(
                    f"resources: no node has what {step} asks for: threads={needs.threads}, gpus={needs.gpus:g}, "
                    f"memory_gb={needs.memory_gb:g}"
                )

    def slots(self) -> int:
        """Return the number of CPUs of the cluster, which may grow."""
        return max(1, int(self.ray.cluster_resources().get("CPU", 0)))

    def has_room(self) -> bool:
        """Whether few tasks are waiting: enough that no CPU is idle, and few, so that late steps still come first."""
        return len(self.running) < 2 * self.slots()

    def submit(self, task: Task, resources: Resources) -> None:
        """Hand a task to Ray."""
        if resources not in self.remote:
            how: dict[str, Any] = {"num_cpus": resources.threads, "max_calls": 1 if resources.gpus else CALLS}
            how |= {"num_gpus": resources.gpus} if resources.gpus else {}
            how |= {"memory": int(resources.memory_gb * GIB)} if resources.memory_gb else {}
            self.remote[resources] = self.ray.remote(max_retries=0, **how)(self.body)
        self.running[self.remote[resources].remote(task)] = task

    def wait(self, seconds: float) -> list[tuple[Task, Outcome]]:
        """Return the tasks that have ended; wait so long for the first."""
        ended, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        others, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        return [(self.running.pop(one), self.outcome(one)) for one in dict.fromkeys([*ended, *others])]

    def outcome(self, ended: Any) -> Outcome:
        """Return what became of a task; one whose process or node has gone is lost."""
        try:
            found: Outcome = self.ray.get(ended)
            return found
        except self.ray.exceptions.RayTaskError as error:
            return Outcome(reason=f"{type(error.cause).__name__}: {error.cause}"[:300])
        except self.ray.exceptions.RayError as error:
            words = " ".join(str(error).split())[:300]
            return Outcome(reason=f"{type(error).__name__}: {words}", lost=True)

    def close(self) -> None:
        """End what is still running, and leave the cluster; one that was started here ends."""
        for task in self.running:
            self.ray.cancel(task, force=True)
        self.running.clear()
        self.ray.shutdown()
        self.quiet.close()


@contextmanager
def stdout_as_stderr() -> Iterator[None]:
    """Send what Ray writes on standard output, in Python or not, to standard error: the first is for the result."""
    flush: Callable[[None], int] = ctypes.CDLL(None).fflush  # of the buffers that Python does not know
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)


def different(found: Mapping[str, Mapping[str, Any]], names: Collection[str]) -> str | None:
    """Return what two nodes answer differently, in words; None if all say the same of these names."""
    for name in names:
        answers: dict[str, list[str]] = {}
        for node, facts in found.items():
            answers.setdefault(str(facts[name]), []).append(node)
        if len(answers) > 1:
            (one, first), (other, second) = list(answers.items())[:2]
            return f"{name} is {one[:60]} on {first[0]}, and {other[:60]} on {second[0]}"
    return None
