"""RNP in one picture: ACC and ASR through unlearning, recovery and pruning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnp_mlflow.report.curve import LEGEND, Point, Row, counted, draw_band, mark_points, positions
from rnp_mlflow.report.style import COLUMN, INK, LINES, MUTED, Caption, canvas, plain, save, shares, write_caption

TRAINING = ("acc", "asr", "proxy_asr", "rule_accuracy")


@dataclass(frozen=True)
class Phase:
    """One of the three panels. rows: what was measured, in order; `axis`: the column that lies on the x axis.

    counts: curve → images that it was measured on. limit: the accuracy at which unlearning stops. points: the
    operating points. note: what else has to be known of it.
    """

    title: str
    xlabel: str
    axis: str
    rows: Sequence[Row]
    counts: Mapping[str, int] = field(default_factory=dict)
    limit: float | None = None
    points: Sequence[Point] = ()
    note: str = ""


def draw_phases(file: Path, phases: Sequence[Phase], caption: Caption) -> None:
    """Draw a panel for each phase, side by side with one y axis: ACC, ASR or in its place the proxy's success."""
    with canvas(COLUMN, 2.75, 1, len(phases), sharey=True) as (figure, axes):
        figure.get_layout_engine().set(wspace=0.02)
        stacked = max(draw_phase(ax, phase) for ax, phase in zip(axes[0], phases, strict=True))
        for ax, phase in zip(axes[0], phases, strict=True):
            ax.set_title(phase.title, pad=4 + 5 * stacked, y=1.0)
        axes[0][0].set_ylabel("share of images")
        entries = {
            label: handle for ax in axes[0] for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            entries.values(), entries.keys(), loc="outside upper center", ncols=2, **LEGEND
        )  # fmt: skip
        write_caption(figure, caption, notes(phases))
        save(figure, file)


def draw_phase(ax: Any, phase: Phase) -> int:
    """Draw one panel; return how many symbols of operating points are stacked above it."""
    xs = positions(phase.rows, phase.axis)
    for name in TRAINING:
        if name == "proxy_asr" and has(phase, "asr"):
            continue
        known = [(x, row[name]) for x, row in zip(xs, phase.rows, strict=True) if row.get(name) is not None]
        if known:
            ax.plot(*zip(*known, strict=True), **LINES[name].arguments())
            draw_band(ax, known, LINES[name].colour, phase.counts.get(name, 0))
    if phase.limit is not None:
        ax.axhline(phase.limit, color=MUTED, linewidth=0.7, linestyle=(0, (6, 2)))
        ax.annotate("stop", (0, phase.limit), (1, 1), textcoords="offset points", fontsize=6, color=INK)
    stacked = mark_points(ax, phase.points, xs[0] if xs else 0.0)
    plain(ax)
    shares(ax)
    ax.set_xlabel(phase.xlabel)
    ax.locator_params(axis="x", nbins=4)
    return stacked


def notes(phases: Sequence[Phase]) -> str:
    """Say on how many images the panels were measured."""
    words: dict[str, list[str]] = {}
    for phase in phases:
        words.setdefault(counted(phase.counts).partition(";")[0], []).append(phase.title)
    parts = [f"{', '.join(titles)}: {count}" for count, titles in words.items() if count]
    if parts:
        parts.append("bands: Wilson 95 %")
    if not any(has(phase, "asr") for phase in phases) and any(has(phase, "proxy_asr") for phase in phases):
        parts.append("no triggered images are known: in recovery and pruning, the proxy's success stands in for ASR")
    return "; ".join([*parts, *(phase.note for phase in phases if phase.note)])


def has(phase: Phase, name: str) -> bool:
    """Whether the curve was measured in this phase."""
    return any(row.get(name) is not None for row in phase.rows)
