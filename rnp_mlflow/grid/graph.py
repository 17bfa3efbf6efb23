"""The graph of steps that cells have in common: each step is there once, under a key made of all that decides it."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """One step of one cell.

    decisive: all that decides its result besides the steps before it. values: what to hand on to the step, by name.
    """

    name: str
    decisive: Mapping[str, Any]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Node:
    """One step of the graph. before: key of the step that it starts from, if any. is_last: a cell ends with it."""

    key: str
    step: str
    values: Mapping[str, Any]
    before: str | None
    is_last: bool = False


@dataclass(frozen=True)
class Graph:
    """nodes: key → node, each after the one it starts from. cells: key of each cell's last step, in their order."""

    nodes: Mapping[str, Node]
    cells: Sequence[str]

    def path(self, key: str) -> list[Node]:
        """Return a step and those before it, the first one first."""
        node = self.nodes[key]
        return [*(self.path(node.before) if node.before else []), node]

    def missing(self, there: Iterable[str]) -> list[Node]:
        """Return the steps that have to be made so that every cell ends, if these are there."""
        known, wanted = set(there), dict[str, Node]()
        for last in self.cells:
            key: str | None = last
            while key is not None and key not in known and key not in wanted:
                wanted[key] = self.nodes[key]
                key = self.nodes[key].before
        return [node for key, node in self.nodes.items() if key in wanted]


def digest(content: object) -> str:
    """Return the SHA-256 (hex) of plain values as canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def build(cells: Iterable[Sequence[Step]], code: str) -> Graph:
    """Return the graph of these cells. code: digest of the code that makes the steps."""
    nodes: dict[str, Node] = {}
    last: list[str] = []
    for steps in cells:
        before: str | None = None
        for k, step in enumerate(steps):
            key = digest({"code": code, "step": step.name, "decisive": step.decisive, "before": before})
            is_last = k == len(steps) - 1
            if key not in nodes or is_last:
                nodes[key] = Node(key, step.name, step.values, before, is_last)
            before = key
        if before is not None:
            last.append(before)
    return Graph(nodes, last)
