"""The pruning curves of many runs in one picture: a panel for each group, a line for each run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rnp_mlflow.report.style import LINES, PAGE, canvas, plain, save, shares, short, write_caption

ACROSS = 3  # panels
NAMES = ("acc", "asr")


@dataclass(frozen=True)
class RunCurve:
    """The curve of one run. pruned, chosen: neurons. values: acc and asr (0 to 1), as far as they are known."""

    pruned: Sequence[int]
    values: Mapping[str, Sequence[float]]
    chosen: int


def draw_overlay(file: Path, groups: Mapping[str, Sequence[RunCurve]], caption: str) -> None:
    """Draw ACC and ASR of each run over pruned neurons, with a marker at the chosen point."""
    down = -(-len(groups) // ACROSS)
    across = min(len(groups), ACROSS)
    with canvas(PAGE * across / ACROSS if across > 1 else 3.3, 1.9 * down + 0.5, down, across) as (figure, axes):
        panels = list(axes.flat)
        for ax, (name, curves) in zip(panels, groups.items(), strict=False):
            for curve in curves:
                _draw(ax, curve)
            # Most curves end in the first tenth of the neurons, so the axis is logarithmic from 10 on.
            ax.set_xscale("symlog", linthresh=10)
            most = max(max(curve.pruned) for curve in curves)
            ticks = [0, *(10**k for k in range(1, 9) if 10**k <= most)]
            ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            ax.set_xticks([], minor=True)
            ax.set_xlim(left=0)
            ax.set_title(short(name, 34))
            ax.set_xlabel("neurons pruned")
            shares(ax)
            plain(ax)
        for ax in panels[len(groups) :]:
            ax.set_axis_off()
        handles, labels = panels[0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(unique.values(), unique.keys(), frameon=False, loc="outside upper left", ncols=4)
        write_caption(figure, caption)
        save(figure, file)


def _draw(ax: object, curve: RunCurve) -> None:
    for name in NAMES:
        if name not in curve.values:
            continue
        values = curve.values[name]
        look = LINES[name].arguments() | {"marker": "", "linewidth": 0.8, "alpha": 0.8}
        ax.plot(curve.pruned, values, **look)  # type: ignore[attr-defined]
        at = [k for k, pruned in enumerate(curve.pruned) if pruned == curve.chosen][:1]
        mark = LINES[name].arguments() | {"linestyle": "", "markersize": 4, "label": f"{LINES[name].label}, chosen"}
        ax.plot([curve.pruned[k] for k in at], [values[k] for k in at], **mark)  # type: ignore[attr-defined]
