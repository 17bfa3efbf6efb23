"""What pruning costs against what it leaves: ACC lost and ASR left, with lines of equal DER."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnp_mlflow.report.style import BLUE, COLUMN, GREEN, INK, MARKS, MUTED, RED, SMALL, Caption, canvas, plain, save
from rnp_mlflow.report.style import write_caption as caption_of

LEVELS = (0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
NAMED = (0.6, 0.7, 0.8, 0.9)  # of them, those with a label
LOOKS = ((BLUE, "o", "-"), (RED, "s", "--"), (GREEN, "^", "-."), (INK, "D", ":"))  # of runs, in turn


@dataclass(frozen=True)
class RunPoints:
    """The points of one run, (ACC, ASR) each, the unpruned model first. marked: operating point → (ACC, ASR)."""

    name: str
    points: Sequence[tuple[float, float]]
    marked: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def lost(self, acc: float) -> float:
        """Return the ACC that the unpruned model has more."""
        return self.points[0][0] - acc


def draw_tradeoff(file: Path, runs: Sequence[RunPoints], caption: Caption | str) -> None:
    """Draw the points of one or several runs: the nearer to the lower left, the better.

    The lines of equal DER hold for the mean ASR before of the runs.
    """
    before = sum(run.points[0][1] for run in runs) / len(runs)
    with canvas(COLUMN, 3.0) as (figure, axes):
        ax = axes[0][0]
        for k, run in enumerate(runs):
            draw_run(ax, run, k, alone=len(runs) == 1)
        losses = [run.lost(acc) for run in runs for acc, _ in (*run.points, *run.marked.values())]
        left, right = min(-0.02, 1.1 * min(losses)), max(0.1, 1.1 * max(losses))
        draw_der_lines(ax, before, left, right)
        plain(ax)
        ax.grid(visible=False)
        ax.set(xlim=(left, right), ylim=(-0.03, 1.03), xlabel="ACC lost", ylabel="ASR left")
        figure.legend(loc="outside upper center", ncols=2, frameon=False, columnspacing=1)
        of = "the mean " if len(runs) > 1 else ""
        caption_of(figure, caption, f"grey: equal DER, for {of}ASR before of {before:.3f}")
        save(figure, file)


def draw_run(ax: Any, run: RunPoints, turn: int, alone: bool) -> None:
    """Draw a run's points in the order of pruning, and its operating points."""
    colour, marker, dash = LOOKS[turn % len(LOOKS)]
    xs, ys = [run.lost(acc) for acc, _ in run.points], [asr for _, asr in run.points]
    label = "more and more pruned" if alone else run.name
    ax.plot(xs, ys, marker=marker, linestyle=dash, color=colour, markersize=2.8, linewidth=0.9, label=label)
    for name, (acc, asr) in run.marked.items():
        ax.plot(
            [run.lost(acc)], [asr], MARKS[name].marker, color=INK, markersize=8, markerfacecolor="none", clip_on=False,
            linestyle="none", label=None if turn else MARKS[name].label,
        )  # fmt: skip


def draw_der_lines(ax: Any, before: float, left: float, right: float) -> None:
    """Draw lines of equal DER = [max(0, ASR₀ - ASR) + 1 - max(0, ACC lost)] / 2."""
    for level in LEVELS:
        start = before + 1 - 2 * level  # the ASR that gives this DER if no ACC is lost
        if not 0 <= start <= before:
            continue
        end = min(right, start)
        ax.plot([left, 0, end], [start, start, start - end], color=MUTED, linewidth=0.5, zorder=0)
        if level in NAMED:
            ax.annotate(
                f"DER {level:g}", (left, start), (1, 1), textcoords="offset points", fontsize=SMALL, color=MUTED
            )
