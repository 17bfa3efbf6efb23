"""Run a graph: each step once what it starts from is there, later steps first, so that cells end early."""

import heapq
from collections.abc import Callable, Mapping
from typing import Protocol

from rnp_mlflow.grid.executors import Executor, Outcome, Task
from rnp_mlflow.grid.graph import Graph, Node
from rnp_mlflow.grid.spec import Resources

ATTEMPTS = 4  # of a step that the system ended: a node that died, no memory, a store that was away
PERIOD = 1.0  # seconds between looks
UPSTREAM = "starts from a step that failed: "
Maker = Callable[[Node, str | None, int], Task]  # (node, run ID of the step before it, attempt)


class Watcher(Protocol):
    """Is told what happens."""

    def began(self, node: Node) -> None:
        """Hear that a step was handed to the executor."""

    def ended(self, node: Node, outcome: Outcome) -> None:
        """Hear what became of a step."""

    def lost(self, task: Task, reason: str) -> None:
        """Hear that the system ended a step, before it is tried again."""


class Drive:
    """One run through a graph. done, failed: key → run ID, or the reason why there is none; both grow."""

    def __init__(
        self,
        graph: Graph,
        executor: Executor,
        watcher: Watcher,
        *,
        resources: Mapping[str, Resources],
        task: Maker,
        done: Mapping[str, str],
        failed: Mapping[str, str],
    ):
        self.graph, self.executor, self.watcher = graph, executor, watcher
        self.resources, self.task = resources, task
        self.done, self.failed = dict(done), dict(failed)
        self.rank = {key: (-len(graph.path(key)), k) for k, key in enumerate(graph.nodes)}
        self.ready: list[tuple[tuple[int, int], str]] = []
        self.followers: dict[str, list[Node]] = {}
        self.running = 0

    def run(self) -> None:
        """Make all that is missing; return when nothing more can be made."""
        for node in self.graph.missing({*self.done, *self.failed}):
            if node.before is None or node.before in self.done:
                self.release(node)
            else:
                self.followers.setdefault(node.before, []).append(node)
        for key, reason in list(self.failed.items()):
            self.give_up(key, UPSTREAM + reason.removeprefix(UPSTREAM))
        while self.ready or self.running:
            while self.ready and self.executor.has_room():
                self.submit(self.graph.nodes[heapq.heappop(self.ready)[1]], 1)
                self.running += 1
            for task, outcome in self.executor.wait(PERIOD):
                self.take(task, outcome)

    def release(self, node: Node) -> None:
        """Let a step begin as soon as there is room."""
        heapq.heappush(self.ready, (self.rank[node.key], node.key))

    def submit(self, node: Node, attempt: int) -> None:
        """Hand a step to the executor."""
        upstream = self.done[node.before] if node.before else None
        self.watcher.began(node)
        self.executor.submit(self.task(node, upstream, attempt), self.resources[node.step])

    def take(self, task: Task, outcome: Outcome) -> None:
        """Take what became of a task: try again what was lost, and go on with what starts from it."""
        node = self.graph.nodes[task.key]
        if outcome.lost:
            self.watcher.lost(task, outcome.reason or "")
            if task.attempt < ATTEMPTS:
                self.submit(node, task.attempt + 1)
                return
        self.running -= 1
        self.watcher.ended(node, outcome)
        if outcome.run_id:
            self.done[node.key] = outcome.run_id
            for follower in self.followers.pop(node.key, []):
                self.release(follower)
        else:
            self.failed[node.key] = outcome.reason or "for an unknown reason"
            self.give_up(node.key, UPSTREAM + self.failed[node.key])

    def give_up(self, key: str, reason: str) -> None:
        """Let all that starts from a step fail for its reason."""
        for node in self.followers.pop(key, []):
            self.failed[node.key] = reason
            self.watcher.ended(node, Outcome(reason=reason))
            self.give_up(node.key, reason)
