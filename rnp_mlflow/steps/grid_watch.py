"""Say how far a grid is: on the screen, and in its run."""

import sys
import time
from collections.abc import Callable

from rnp_mlflow.grid.executors import Outcome, Task
from rnp_mlflow.grid.graph import Node
from rnp_mlflow.steps import runtime
from rnp_mlflow.steps.output import is_terminal
from rnp_mlflow.steps.progress import Bar
from rnp_mlflow.tracking.runs import StepRun

PERIOD = 20.0  # seconds between two notes


class Watch:
    """Counts what ended. made: keys of the steps that this grid made."""

    def __init__(self, run: StepRun, bar: Bar, close: Callable[[str], int]):
        self.run, self.bar, self.close = run, bar, close
        self.made: set[str] = set()
        self.failed = self.retried = 0
        self.state = ""
        self.noted = time.monotonic()

    def began(self, node: Node) -> None:
        """Do nothing: the executor may let it wait."""

    def ended(self, node: Node, outcome: Outcome) -> None:
        """Advance, and say what failed."""
        self.failed += outcome.run_id is None
        if outcome.made:
            self.made.add(node.key)
        if outcome.run_id is None:
            runtime.log(f"  {node.step} {node.key[:8]} failed: {outcome.reason}")
        self.bar(f"{self.failed} failed" if self.failed else "")
        if time.monotonic() - self.noted > PERIOD:
            self.say()

    def lost(self, task: Task, reason: str) -> None:
        """Close what a lost attempt left open, and say so."""
        self.retried += 1
        self.close(task.key)
        runtime.log(f"  {task.step} {task.key[:8]} was lost (attempt {task.attempt}): {reason[:160]}")

    def say(self) -> None:
        """Note in the run how far the grid is; print it, if there is no bar on a terminal to show it."""
        self.noted, before = time.monotonic(), self.state
        self.state = f"{self.bar.done:g} of {self.bar.total or 0} steps, {self.failed} failed"
        if self.state != before and not is_terminal(sys.stderr):
            runtime.log(f"  {self.state}")
        self.run.tags({"state": self.state})
        self.run.metrics({"steps_done": self.bar.done, "steps_failed": self.failed, "steps_retried": self.retried},
                         step=int(self.bar.done))  # fmt: skip
