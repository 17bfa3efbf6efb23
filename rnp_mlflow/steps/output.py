"""What a process prints: how much of it, how wide, and in which characters."""

import errno
import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field, replace
from typing import Self, TextIO

from rnp_mlflow.shown import printable

LINE = 20_000  # characters of a printed line, at most
WIDTH = 80  # columns of a terminal that does not say how wide it is, and of a pipe or a file
# symbol → what stands for it if the stream's encoding lacks it
ASCII = str.maketrans({"◀": "<", "→": "->", "≤": "<=", "×": "x", "─": "-", "–": "-", "…": "..."})
Lines = Callable[[int, bool], list[str]]


def no_lines(width: int, verbose: bool) -> list[str]:
    """Return nothing to print."""
    return []


@dataclass(frozen=True)
class Result:
    """What an entry point concludes.

    content: the object of `--json`. brief: the lines of `--quiet`. lines: (columns, whether with details) → the lines
    printed on standard output otherwise.
    """

    content: Mapping[str, object]
    brief: list[str]
    lines: Lines = field(default=no_lines)

    def of_run(self, entry: str, run_id: str, run_ids: Mapping[str, str]) -> Self:
        """Return the result with the run that it belongs to. run_ids: that run and those before it, by step."""
        who = {"entry": entry, "run_id": run_id, "run_ids": by_kind(run_ids)}
        return replace(self, content=who | dict(self.content), brief=[f"{entry} run {run_id}", *self.brief])


def by_kind(run_ids: Mapping[str, str]) -> dict[str, str]:
    """Return the run IDs with those of models under one name, whether trained here or imported."""
    return {"model" if step in ("attack", "import") else step: run_id for step, run_id in run_ids.items()}


class Newest:
    """The newest result of this process; that of the entry point comes last."""

    result: Result | None = None


def keep(result: Result) -> None:
    """Keep a result; it is printed if no other follows."""
    Newest.result = result


def newest() -> Result | None:
    """Return the newest result."""
    return Newest.result


def print_newest(*, quiet: bool, verbose: bool, as_json: bool) -> None:
    """Print the newest result on standard output."""
    found = Newest.result
    if found is None:
        return
    if as_json:
        write(json.dumps(found.content, indent=2).splitlines(), sys.stdout)
    elif quiet:
        write(found.brief, sys.stdout)
    else:
        write(found.lines(columns(sys.stdout), verbose), sys.stdout)


def log(line: str) -> None:
    """Print one line for the person who waits, on standard error; on a terminal it is wrapped between words."""
    terminal = is_terminal(sys.stderr)
    write(wrap(line, columns(sys.stderr)) if terminal else [line], sys.stderr)


@contextmanager
def amount(*, quiet: bool, verbose: bool) -> Iterator[None]:
    """Hold standard error to what was asked for: nothing if quiet; MLflow's own notes only if verbose."""
    library = logging.getLogger("mlflow")
    level, disabled = library.level, logging.root.manager.disable
    with ExitStack() as stack:
        if quiet:
            stack.enter_context(redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
            logging.disable(logging.WARNING)
        if not verbose:
            library.setLevel(max(level, logging.WARNING))
        try:
            yield
        finally:
            library.setLevel(level)
            logging.disable(disabled)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a person sees the stream, and control codes work there. None: the stream is closed."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def columns(stream: TextIO | None) -> int:
    """Return the width of a terminal; `WIDTH` if it does not say, and for all else."""
    if stream is not None and stream.isatty():
        with suppress(OSError, ValueError):
            return os.get_terminal_size(stream.fileno()).columns or WIDTH
    return WIDTH


def wrap(line: str, width: int) -> list[str]:
    """Break a line between words; what follows is indented by two more than its beginning. Long words stay whole."""
    indent = line[: len(line) - len(line.lstrip())]
    wrapper = textwrap.TextWrapper(width, indent, f"{indent}  ", break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(line.strip()) or [""]


def write(lines: Iterable[str], stream: TextIO | None) -> None:
    """Write lines. A character that the stream cannot take is replaced; if its reader has gone, the rest is dropped."""
    if stream is None:
        return
    try:
        stream.write("".join(f"{encodable(printable(line.rstrip(), LINE), stream)}\n" for line in lines))
        stream.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):  # the latter is a terminal that was closed
            raise
        with suppress(OSError, ValueError):  # or Python complains when it flushes the stream at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def encodable(text: str, stream: TextIO) -> str:
    """Return the text with ASCII in place of what the stream's encoding lacks."""
    encoding = stream.encoding or "utf-8"
    for plainer in (text, text.translate(ASCII)):
        with suppress(UnicodeEncodeError):
            plainer.encode(encoding)
            return plainer
    return text.translate(ASCII).encode(encoding, "backslashreplace").decode(encoding)
