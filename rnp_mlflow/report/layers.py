"""Where in the model the pruned neurons are."""

from collections.abc import Mapping
from pathlib import Path

from rnp_mlflow.report.style import BLUE, COLUMN, INK, SMALL, Caption, canvas, end_of, save, write_caption

MOST = 60  # layers that are all shown; of more, those that lose neurons


def draw_layers(file: Path, layers: Mapping[str, tuple[int, int]], caption: Caption) -> None:
    """Draw a bar for each layer, input first: the share of its neurons that is pruned, and beside it the count.

    layers: layer → (neurons pruned, neurons).
    """
    shown = layers
    if len(layers) > MOST:
        shown = {name: counts for name, counts in layers.items() if counts[0]}
    lost, neurons = sum(n for n, _ in layers.values()), sum(of for _, of in layers.values())
    note = f"{lost:,} of {neurons:,} neurons pruned"
    if len(shown) < len(layers):
        note += f"; not shown: {len(layers) - len(shown)} layers that lose none"
    shares = [n / of for n, of in shown.values()]
    with canvas(COLUMN, 0.125 * max(len(shown), 1) + 0.85) as (figure, axes):
        ax, places = axes[0][0], range(len(shown))
        ax.barh(places, shares, height=0.7, color=BLUE, edgecolor=INK, linewidth=0.4)
        for y, share, (n, of) in zip(places, shares, shown.values(), strict=True):
            ax.annotate(
                f"{n} of {of}", (share, y), (2, 0), textcoords="offset points", va="center", fontsize=SMALL,
                color=INK,
            )  # fmt: skip
        ax.set_yticks(places, [end_of(name) for name in shown])
        ax.tick_params(axis="y", length=0, pad=2)
        ax.set_ylim(len(shown) - 0.4, -0.6)
        ax.set_xlim(0, 1.3 * max(shares, default=0) or 1)
        ax.set_xlabel("share of the layer's neurons that is pruned")
        ax.spines[["top", "right"]].set_visible(False)
        write_caption(figure, caption, note)
        save(figure, file)
