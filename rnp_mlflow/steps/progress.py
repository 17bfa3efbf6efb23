"""Bars and short notes on standard error that show what is being done; nothing if that is not a terminal."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Column

from rnp_mlflow.shown import printable
from rnp_mlflow.steps.output import is_terminal

REFRESHES = 4  # a second; each takes a millisecond or two from the work


class Bar:
    """A bar that may also show a figure. Without a `display` it shows nothing, at no cost.

    total: None if it is not known yet; the bar then appears at the first figure.
    """

    def __init__(self, display: Progress | None, phase: str, total: int | None, after: Callable[[], None]):
        self.display, self.phase, self.after = display, phase, after
        self.done, self.total = 0.0, total
        self.task: TaskID | None = None
        if total is not None:
            self.at(0)

    def __call__(self, figure: str = "") -> None:
        """Advance by one."""
        self.after()
        self.at(self.done + 1, figure)

    def at(self, done: float, figure: str = "", total: int | None = None) -> None:
        """Go to this point, and show a figure. A total that turns out too small is raised."""
        self.done = done
        if self.display is None:
            return
        self.total = max(total or self.total or 1, math.ceil(done))
        if self.task is None:
            self.task = self.display.add_task(self.phase, total=self.total, figure=figure)
        self.display.update(self.task, completed=done, total=self.total, figure=figure)

    def finish(self) -> None:
        """Fill the bar: what ended before its limit is done, too."""
        if self.display is not None and self.task is not None:
            done = max(1, math.ceil(self.done))
            self.display.update(self.task, completed=done, total=done)


class Shown:
    """What is on the screen: one bar, or one note, which makes way for a bar."""

    bar = False
    note: Status | None = None


@contextmanager
def bar(phase: str, total: int | None, after: Callable[[], None]) -> Iterator[Bar]:
    """Show a bar; it is full when the work ends. after: called at every advance."""
    if Shown.bar or not is_terminal(sys.stderr):
        yield Bar(None, phase, total, after)
        return
    display = Progress(
        TextColumn("{task.description:<8}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figure]}", markup=False, table_column=Column(no_wrap=True)),
        console=Console(stderr=True),
        refresh_per_second=REFRESHES,
        redirect_stdout=is_terminal(sys.stdout),  # else it is not the screen that the bar is on
    )
    with instead_of_note(), display:
        found = Bar(display, phase, total, after)
        yield found
        found.finish()


@contextmanager
def instead_of_note() -> Iterator[None]:
    """Take the note off the screen while a bar is there."""
    Shown.bar = True
    if Shown.note:
        Shown.note.stop()
    try:
        yield
    finally:
        Shown.bar = False
        if Shown.note:
            Shown.note.start()


@contextmanager
def note(text: str) -> Iterator[None]:
    """Show what is being done, and remove it when it is; nothing if a bar or another note says it."""
    if Shown.bar or Shown.note or not is_terminal(sys.stderr):
        yield
        return
    status = Console(stderr=True).status(escape(printable(text)), spinner="line", refresh_per_second=REFRESHES)
    Shown.note = status
    try:
        with status:
            yield
    finally:
        Shown.note = None
