"""How every picture looks: sizes, colours, markers, line styles, caption, and the files it is written to.

Matplotlib is imported inside the functions of this room, because its import takes a second.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from rnp_mlflow.shown import printable

COLUMN, PAGE = 3.3, 7.0  # inches: one column of a paper, and its whole width
DPI = 200
TEXT, SMALL = 7.0, 6.0  # points, at the size that a picture is drawn in
INK, MUTED, GRID = "#222222", "#6b6b6b", "#e6e6e6"
BLUE, RED, GREEN = "#0072b2", "#c4500a", "#00664b"  # after Okabe and Ito, darkened to 3:1 or more against white
SETTINGS = {
    "font.size": TEXT, "axes.titlesize": TEXT, "axes.labelsize": TEXT, "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL, "legend.fontsize": SMALL, "axes.linewidth": 0.6, "lines.linewidth": 1.2,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.unicode_minus": False, "svg.fonttype": "none", "svg.hashsalt": "rnp_mlflow", "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """The look of one curve. marker, dash: matplotlib's. hollow: markers are white inside."""

    label: str
    colour: str
    marker: str
    dash: str
    hollow: bool = False

    def arguments(self) -> dict[str, Any]:
        """Return what `Axes.plot` takes."""
        inside = "white" if self.hollow else self.colour
        shape = {"marker": self.marker, "markersize": 3.2, "markerfacecolor": inside, "markeredgewidth": 0.8}
        return {"color": self.colour, "linestyle": self.dash, "label": self.label, **shape}


# What is known without the attacker's trigger has a dashed line and hollow markers.
LINES = {
    "acc": Line("ACC", BLUE, "o", "-"),
    "asr": Line("ASR", RED, "s", "-"),
    "ra": Line("RA", GREEN, "^", "-."),
    "val_acc": Line("held-out ACC", BLUE, "o", "--", hollow=True),
    "proxy_asr": Line("proxy's success", RED, "D", "--", hollow=True),
    "rule_accuracy": Line("seen by the stop rule", MUTED, ".", ":"),
}


@dataclass(frozen=True)
class Mark:
    """The look of an operating point: marker above the axes, line style of its vertical line."""

    label: str
    marker: str
    dash: str


MARKS = {
    "chosen": Mark("chosen", "v", "-"),
    "fixed": Mark("fixed", "D", "--"),
    "oracle": Mark("oracle (sees the trigger)", "*", ":"),
    "repaired": Mark("repaired", "P", "-"),
}


@dataclass(frozen=True)
class Caption:
    """What a picture shows: the model, its data, the attack with its poison rate (0 to 1), the seed and the run.

    attack: `none` or `unknown` are no attacks.
    """

    model: str
    data: str
    attack: str
    poison_rate: float | None
    seed: int
    run_id: str

    def __str__(self) -> str:
        words = {"none": "no attack", "unknown": "attack unknown"}
        rate = f" {100 * self.poison_rate:g} %" if self.poison_rate else ""
        attack = words.get(self.attack, f"{self.attack}{rate}")
        return (
            f"{self.model} on {printable(self.data, 100)} · {attack} · seed\xa0{self.seed} · run\xa0{self.run_id[:8]}"
        )


@contextmanager
def canvas(width: float, height: float, rows: int = 1, cols: int = 1, **grid: Any) -> Iterator[tuple[Any, Any]]:
    """Yield a figure of so many inches and its axes (rows, cols); text, lines and SVG are in the style of the house.

    grid: of `Figure.subplots`.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, cols, squeeze=False, **grid)


def plain(ax: Any) -> None:
    """Leave out the frame's upper and right side; draw a faint horizontal grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color=GRID, linewidth=0.5)
    ax.set_axisbelow(True)
    ax.tick_params(length=2, width=0.6, pad=2)


def shares(ax: Any) -> None:
    """Let the y axis show shares, 0 to 1."""
    ax.set_ylim(-0.03, 1.03)
    ax.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0", ".2", ".4", ".6", ".8", "1"])


def write_caption(figure: Any, caption: Caption | str, note: str = "") -> None:
    """Write the caption at the bottom, and below it what has to be known to read the picture."""
    width = int(figure.get_size_inches()[0] * 72 / (0.57 * SMALL))  # characters a line
    lines = [line for part in (str(caption), printable(note)) for line in wrap(part, width, break_on_hyphens=False)]
    figure.supxlabel("\n".join(lines), fontsize=SMALL, color=MUTED, x=0.01, ha="left", linespacing=1.25)


def save(figure: Any, file: Path, svg: bool = True) -> None:
    """Write the figure as PNG and, beside it, as SVG; the same figure gives the same bytes."""
    figure.savefig(file, dpi=DPI, metadata={"Software": None})
    if svg:
        figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})


def end_of(path: str, width: int = 28) -> str:
    """Return the end of a module's path: the ends tell layers apart."""
    found = printable(path)
    return found if len(found) <= width else f"…{found[1 - width :]}"


def short(name: str, width: int, lines: int = 2) -> str:
    """Wrap a class name to at most `lines` lines of `width` characters; a longer name keeps its start and end."""
    most, name = lines * width - 1, printable(name).replace("\n", " ")
    if len(name) > most:
        name = f"{name[: most // 2]}…{name[-(most // 2) :]}"
    found = wrap(name, width, break_on_hyphens=False) or [name]
    return "\n".join(found if len(found) <= lines else [name[k : k + width] for k in range(0, len(name), width)])
