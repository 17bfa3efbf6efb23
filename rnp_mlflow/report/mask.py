"""How the values of a mask are distributed in each layer."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rnp_mlflow.report.style import COLUMN, INK, SMALL, Caption, canvas, end_of, save, write_caption

BINS = 50  # of mask values


def draw_mask(file: Path, mask: Mapping[str, Tensor], caption: Caption) -> None:
    """Draw a histogram of mask values: one row per layer, the number of neurons as colour (logarithmic)."""
    from matplotlib.colors import LogNorm

    counts = torch.stack([values.histc(BINS, 0, 1) for values in mask.values()])
    low = [f"{int((values < 0.5).sum())} of {len(values)}" for values in mask.values()]
    lines, small = len(mask), {"fontsize": SMALL, "color": INK}
    with canvas(COLUMN, 0.125 * lines + 1) as (figure, axes):
        ax = axes[0][0]
        colours = ax.imshow(
            counts.where(counts > 0, torch.nan), cmap="Greys", norm=LogNorm(0.2, max(10, int(counts.max()))),
            aspect="auto", extent=(0, 1, lines, 0), interpolation="none",
        )  # fmt: skip
        ax.axvline(0.5, color=INK, linewidth=0.8, linestyle="--")
        ax.text(1.02, 0, "below 0.5", va="bottom", **small)
        ax.set_xlabel("mask value")
        right = ax.secondary_yaxis("right")
        for side, words in ((ax, [end_of(name) for name in mask]), (right, low)):
            side.set_yticks([k + 0.5 for k in range(lines)], words, **small)
            side.tick_params(axis="y", length=0, pad=2)
            side.spines[:].set_visible(False)
        bar = figure.colorbar(colours, format="%g", pad=0.02, shrink=min(1.0, 12 / lines), anchor=(0, 1))
        bar.set_label("neurons")
        bar.minorticks_off()
        write_caption(figure, caption)
        save(figure, file)
