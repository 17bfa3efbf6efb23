"""Signals that ask the process to end: they wait while a call of the tracking store is open.

An interrupted call leaves SQLite locked, and its run RUNNING. Imports only the standard library, because `__main__`
reads it before anything else.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 3  # pressed so often, Ctrl-C ends a call of the store all the same


class Stopped(BaseException):
    """The process was asked to end (SIGTERM, SIGHUP); the run is marked KILLED. exit_code: as a shell reports it."""

    def __init__(self, message: str, exit_code: int = 128 + signal.SIGTERM):
        super().__init__(message)
        self.exit_code = exit_code


class _State:
    """postponing: a call is open. waiting: the signals that came during it. reason: why this process stops itself.

    terminals: those of standard output and error that were terminals at first.
    """

    postponing = False
    waiting: tuple[int, ...] = ()
    reason: str | None = None
    terminals: tuple[int, ...] = ()


def _raise(number: int) -> None:
    _State.waiting = ()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(_State.reason or f"stopped by {signal.Signals(number).name}", 128 + number)


def _leave_terminal() -> None:
    """Write to nowhere in place of a terminal that was closed: an error of writing would hide why the run ended."""
    gone = [number for number in _State.terminals if not os.isatty(number)]
    for number in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _handle(number: int, frame: object) -> None:
    if number == signal.SIGHUP:
        _leave_terminal()
    _State.waiting += (number,)
    if not _State.postponing or _State.waiting.count(signal.SIGINT) >= PATIENCE:
        _raise(number)


def _raise_waiting() -> None:
    if _State.waiting and not _State.postponing:
        _raise(_State.waiting[0])


@contextmanager
def postponed() -> Iterator[None]:
    """Let signals wait until the context ends; the first is raised then."""
    before, _State.postponing = _State.postponing, True
    try:
        yield
    finally:
        _State.postponing = before
        _raise_waiting()


@contextmanager
def allowed() -> Iterator[None]:
    """Raise signals at once, within `postponed`: those that waited, and those that come."""
    before, _State.postponing = _State.postponing, False
    try:
        _raise_waiting()
        yield
    finally:
        _State.postponing = before


def install() -> None:
    """Turn the signals into exceptions, so that runs end KILLED instead of staying RUNNING.

    One that the caller had ignored (`nohup`) stays ignored.
    """
    if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
        _State.terminals = tuple(number for number in (1, 2) if os.isatty(number))
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _handle)


def stop(reason: str) -> None:
    """Stop this process as SIGTERM does, from any thread. reason: the one line of the error."""
    _State.reason = reason
    os.kill(os.getpid(), signal.SIGTERM)


def leave_at_once() -> None:
    """Have Ctrl-C end the process in one line while there is nothing to close: no run, no file.

    An exception in the middle of an import would be a page of other packages' lines, or be swallowed.
    """

    def leave(number: int, frame: object) -> None:
        with suppress(OSError):
            cursor = b"\r\x1b[K\x1b[?25h" if os.isatty(2) else b""  # a note on a terminal hides it
            os.write(2, cursor + b"error: interrupted\n")
        os._exit(128 + number)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, leave)


def ignore_interrupts() -> None:
    """Let Ctrl-C do nothing more: the work is done, and Python is closing."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
