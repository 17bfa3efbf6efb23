"""The pruning curve: what pruning more and more neurons does, with intervals and the operating points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnp_mlflow.report.intervals import wilson
from rnp_mlflow.report.style import (
    COLUMN,
    INK,
    LINES,
    MARKS,
    SMALL,
    Caption,
    canvas,
    plain,
    save,
    shares,
    write_caption,
)

CURVES = ("acc", "val_acc", "asr", "proxy_asr", "ra")
LEGEND = {"frameon": False, "handlelength": 2.4, "columnspacing": 1.0, "borderaxespad": 0.1}
Row = Mapping[str, Any]  # of pruning_curve.csv; None: not measured


@dataclass(frozen=True)
class Point:
    """An operating point. name: key of `MARKS`. at: its place on the axis, None for the unpruned model."""

    name: str
    at: float | None
    pruned: int
    used: bool


@dataclass(frozen=True)
class Sweep:
    """What pruning more and more neurons does.

    rows: the unpruned model first. axis: `threshold` or `number`, the column on the x axis. points: the operating
    points. counts: curve → the independent images that it was measured on; it gets a band, the 95 % interval. values:
    by number, the highest mask value that each further row prunes, for the lower axis. note: what else a reader of the
    caption has to know.
    """

    rows: Sequence[Row]
    axis: str
    points: Sequence[Point] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    values: Sequence[float] = ()
    note: str = ""

    def looked_at(self) -> int:
        """Return how many points were measured: those of the rows, and the operating points beside them."""
        return len({row[self.axis] for row in self.rows} | {point.at for point in self.points})


def draw_curve(file: Path, sweep: Sweep, caption: Caption) -> None:
    """Draw ACC, ASR and RA and, on held-out images, ACC and the proxy's success, over the sweep; mark the points."""
    with canvas(COLUMN, 3.4) as (figure, axes):
        ax = axes[0][0]
        draw_sweep(ax, sweep)
        mark_points(ax, sweep.points, positions(sweep.rows, sweep.axis)[0])
        lower_axis(ax, sweep)
        figure.legend(loc="outside upper center", ncols=2, **LEGEND)
        parts = (f"{counted(sweep.counts)}{oracle_note(sweep)}", sweep.note)
        write_caption(figure, caption, "; ".join(part for part in parts if part))
        save(figure, file)


def draw_sweep(ax: Any, sweep: Sweep) -> None:
    """Plot the curves over the sweep, with bands for those whose images are counted."""
    xs = positions(sweep.rows, sweep.axis)
    for name in CURVES:
        known = [(x, row[name]) for x, row in zip(xs, sweep.rows, strict=True) if row[name] is not None]
        if known:
            ax.plot(*zip(*known, strict=True), **LINES[name].arguments())
            draw_band(ax, known, LINES[name].colour, sweep.counts.get(name, 0))
    plain(ax)
    shares(ax)
    ax.set_ylabel("share of images")
    below = "\n\n" if words_below(sweep) else ""  # keeps room for `lower_axis`, which the layout does not see
    ax.set_xlabel(("neurons pruned" if sweep.axis == "number" else "pruned up to this mask value") + below)


def draw_band(ax: Any, known: Sequence[tuple[float, float]], colour: str, count: int) -> None:
    """Shade the 95 % interval around (x, share) points; nothing without a count of images."""
    if count:
        low, high = zip(*(wilson(share, count) for _, share in known), strict=True)
        ax.fill_between([x for x, _ in known], low, high, color=colour, alpha=0.16, linewidth=0)


def mark_points(ax: Any, points: Sequence[Point], left: float) -> int:
    """Draw a vertical line for each operating point, and its symbol above the axes; return how many are stacked there.

    left: the place of the unpruned model.
    """
    levels: list[tuple[float, int]] = []
    near = 0.06 * (ax.get_xlim()[1] - ax.get_xlim()[0])
    for point in points:
        mark, x = MARKS[point.name], left if point.at is None else point.at
        level = max((other for place, other in levels if abs(place - x) < near), default=0) + 1
        levels.append((x, level))
        ax.axvline(x, color=INK, linewidth=0.8, linestyle=mark.dash, zorder=1)
        label = f"{mark.label}: {point.pruned} neurons" + (" (pruned here)" if point.used else "")
        ax.plot(
            [x], [1.0 + 0.055 * level], mark.marker, color=INK, markersize=4.5, clip_on=False, label=label,
            transform=ax.get_xaxis_transform(), linestyle="none",
        )  # fmt: skip
    return max((level for _, level in levels), default=0)


def lower_axis(ax: Any, sweep: Sweep) -> None:
    """Show below the axis what it does not: neurons pruned, or by number the highest mask value pruned."""
    words = words_below(sweep)
    if not words:
        return
    xs = positions(sweep.rows, sweep.axis)
    left, right = ax.get_xlim()
    apart, kept = 0.11 * (right - left), list[int]()
    for k, x in enumerate(xs):
        if not kept or x - xs[kept[-1]] >= apart:
            kept.append(k)
    other = ax.secondary_xaxis(-0.215)
    other.set_xticks([xs[k] for k in kept], [words[k] for k in kept], fontsize=SMALL)
    other.set_xlabel("highest mask value pruned" if sweep.axis == "number" else "neurons pruned")
    other.spines["bottom"].set_visible(False)
    other.tick_params(length=0, pad=0)


def words_below(sweep: Sweep) -> list[str]:
    """Return what stands below each row: neurons pruned, or by number the highest mask value pruned."""
    if sweep.axis == "number":
        return ["none", *(f"{value:.2f}" for value in sweep.values)] if sweep.values else []
    return [f"{row['pruned']:,}" for row in sweep.rows]


def oracle_note(sweep: Sweep) -> str:
    """Say what the oracle is, if there is one."""
    has = any(point.name == "oracle" for point in sweep.points)
    return f"; oracle: the best DER of all {sweep.looked_at()} points measured" if has else ""


def counted(counts: Mapping[str, int]) -> str:
    """Say what the bands are, and how many images they come from."""
    kinds = {"acc": "clean", "asr": "triggered"}
    found = [f"{counts[name]:,} {word}" for name, word in kinds.items() if counts.get(name)]
    return f"n\xa0=\xa0{', '.join(found)}; bands: Wilson 95 %" if found else ""


def positions(rows: Sequence[Row], axis: str) -> list[float]:
    """Return x of every row; the unpruned model is placed a small step to the left of the first point."""
    known = [row[axis] for row in rows if row[axis] is not None]
    left = -0.03 * max(known) if known else 0.0
    return [left if row[axis] is None else row[axis] for row in rows]
