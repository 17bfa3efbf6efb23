"""What runs the steps: one after the other in this process, or side by side (`on_ray`)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rnp_mlflow.grid.spec import Resources


@dataclass(frozen=True)
class Task:
    """A step to be made. upstream: run ID of the step before it. grid_id: run ID of the grid. attempt: from 1 on."""

    key: str
    step: str
    values: Mapping[str, Any]
    upstream: str | None
    grid_id: str
    experiment_id: str
    store: str
    attempt: int = 1


@dataclass(frozen=True)
class Outcome:
    """What became of a task: a finished run, else a reason.
    lost: the system ended it, so it is worth another try. made: the run is this task's own, not one that was there.
    """

    run_id: str | None = None
    reason: str | None = None
    lost: bool = False
    made: bool = False


Body = Callable[[Task], Outcome]


class Executor(Protocol):
    """Runs tasks."""

    def slots(self) -> int:
        """Return how many tasks of one thread run at once; 0: there is no fixed number yet."""

    def has_room(self) -> bool:
        """Whether another task may be handed in."""

    def submit(self, task: Task, resources: Resources) -> None:
        """Take a task."""

    def wait(self, seconds: float) -> list[tuple[Task, Outcome]]:
        """Return the tasks that have ended; wait so long for the first."""

    def close(self) -> None:
        """End what is still running."""


class Serial:
    """Runs one task at a time, in this process."""

    def __init__(self, body: Body):
        self.body = body
        self.task: Task | None = None

    def slots(self) -> int:
        """Return 0: a dry run has this executor in place of the one that will run the steps."""
        return 0

    def has_room(self) -> bool:
        """Whether no task was taken."""
        return self.task is None

    def submit(self, task: Task, resources: Resources) -> None:
        """Take a task; `wait` runs it."""
        self.task = task

    def wait(self, seconds: float) -> list[tuple[Task, Outcome]]:
        """Run the task that was taken."""
        task, self.task = self.task, None
        return [(task, self.body(task))] if task else []

    def close(self) -> None:
        """Do nothing: between two tasks, nothing is running."""
