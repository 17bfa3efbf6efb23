"""Whether the mask marks the neurons that the trigger uses: a neuron's mask value against what the trigger changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rnp_mlflow.report.style import COLUMN, MUTED, RED, Caption, canvas, plain, save, write_caption


def layer_ranks(change: Mapping[str, Tensor]) -> Tensor:
    """Return for every neuron the share of its layer's other neurons that change less; ties count half. (neurons,)"""
    ranks = []
    for values in change.values():
        less = (values[:, None] > values).sum(1) + 0.5 * ((values[:, None] == values).sum(1) - 1)
        ranks.append(less / max(len(values) - 1, 1))
    return torch.cat(ranks)


@dataclass(frozen=True)
class TriggerChange:
    """What the trigger changes in each neuron.

    change: layer → (channels,), the mean over `pairs` images of |activation with the trigger - without|.
    """

    change: Mapping[str, Tensor]
    pairs: int


def draw_activation(
    file: Path, found: TriggerChange, mask: Mapping[str, Tensor], pruned: Tensor, caption: Caption
) -> None:
    """Draw each neuron: its mask value, and how its change by the trigger ranks in its layer (1 = changes most).

    pruned: bool (neurons,), in the order of the layers.
    """
    change, pairs = found.change, found.pairs
    ranks, values = layer_ranks(change), torch.cat(list(mask.values()))
    with canvas(COLUMN, 2.7) as (figure, axes):
        ax = axes[0][0]
        dot = {"linestyle": "none", "rasterized": len(values) > 1500}
        ax.plot(values[~pruned], ranks[~pruned], "o", color=MUTED, markersize=1.6, alpha=0.6, label="kept", **dot)
        ax.plot(
            values[pruned], ranks[pruned], "^", color=RED, markersize=3.2, markeredgecolor="white",
            markeredgewidth=0.2, label="pruned", **dot,
        )  # fmt: skip
        plain(ax)
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="mask value")
        ax.set_ylabel("rank of its change in the layer")
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
        mean = (
            f"mean rank of the pruned neurons {float(ranks[pruned].mean()):.2f} (by chance .50); "
            if pruned.any()
            else ""
        )
        write_caption(figure, caption, f"{mean}change: by the trigger, on {pairs} images")
        save(figure, file)
