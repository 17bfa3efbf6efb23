"""The report of a run: one page with everything in it, to be read offline, printed and sent."""

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

KINDS = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class Row:
    """A row of the table of operating points. used: the model was pruned there."""

    cells: Sequence[str]
    used: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture with its title and how to read it. source: the file, or its content as `inlined` returns it."""

    source: str
    title: str
    caption: str


@dataclass(frozen=True)
class Run:
    """A run by its role and ID. url: its page in the UI, None if there is no server."""

    role: str
    run_id: str
    url: str | None = None


@dataclass(frozen=True)
class Report:
    """All that the page says. All text is escaped.

    verdict: one sentence. suspected: whether it is that there is a backdoor. result: what came out, a paragraph each.
    basis: what the verdict rests on. heads, rows, notes: the table of operating points. parameters: (name, value,
    default). commands: how to repeat the run. provenance: (name, value).
    """

    title: str
    verdict: str
    suspected: bool
    result: Sequence[str]
    basis: Sequence[str]
    heads: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str]
    pictures: Sequence[Picture]
    runs: Sequence[Run]
    parameters: Sequence[tuple[str, str, str]]
    commands: Sequence[str]
    provenance: Sequence[tuple[str, str]]


def inlined(file: Path) -> str:
    """Return a picture as an address that holds its content."""
    return f"data:{KINDS[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"


def write_report(file: Path, report: Report) -> None:
    """Write the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rnp_mlflow.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    file.write_text(environment.get_template("report.html.j2").render(asdict(report)))
