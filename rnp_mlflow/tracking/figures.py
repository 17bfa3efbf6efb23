"""Pictures of a run. Matplotlib and plotly are imported where they draw: they cost a second."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INK, MUTED = "#222222", "#8a8a8a"
COLOURS = {"acc": "#1668b8", "asr": "#c8342b", "ra": "#3b8f4e", "val_acc": "#7fb2e0", "proxy_asr": "#e59a6f"}
BINS = 50  # of mask values
DASHED = ("val_acc", "proxy_asr")  # what is known without the attacker's trigger
NAMES = {
    "acc": "ACC (clean images)",
    "asr": "ASR (triggered → target)",
    "ra": "RA (triggered → true label)",
    "val_acc": "ACC on held-out clean images",
    "proxy_asr": "proxy → suspected class",
}


def _canvas(width: float, height: float, rows: int = 1, cols: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, cols, squeeze=False)


def curve_png(file: Path, rows: Sequence[Mapping[str, Any]], axis: str, chosen: Mapping[str, Any], title: str) -> None:
    """ACC, ASR, RA, and on held-out images ACC and the proxy's success, over the sweep; the chosen point marked.

    rows: of pruning_curve.csv, the unpruned model first (its `axis` is None: drawn at the left edge).
    """
    figure, axes = _canvas(8, 4.6)
    ax = axes[0][0]
    xs = positions(rows, axis)
    for name, colour in COLOURS.items():
        ys = [row[name] for row in rows]
        if any(y is not None for y in ys):
            style = "--" if name in DASHED else "-"
            ax.plot(xs, ys, style, color=colour, marker="o", markersize=3, linewidth=1.6, label=NAMES[name])
    at = xs[0] if chosen["at"] is None else chosen["at"]
    ax.axvline(at, color=INK, linewidth=1)
    label = f"chosen: {chosen['pruned']} neurons"
    ax.annotate(label, (at, 1.04), ha="center", fontsize=9, color=INK, annotation_clip=False)
    ax.set(xlabel=f"pruning {axis}", ylabel="share of images", ylim=(-0.02, 1.02))
    ax.set_title(title, fontsize=10, color=INK, pad=22)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e6e6e6")
    counts = ax.secondary_xaxis(-0.15)
    ticks = list(range(0, len(rows), max(1, len(rows) // 10)))
    counts.set_xticks([xs[k] for k in ticks], [str(rows[k]["pruned"]) for k in ticks], fontsize=8, color=MUTED)
    counts.set_xlabel("neurons pruned", fontsize=8, color=MUTED)
    counts.spines["bottom"].set_visible(False)
    counts.tick_params(length=0)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(file, metadata={"Software": None})


def curve_html(file: Path, rows: Sequence[Mapping[str, Any]], axis: str, chosen: Mapping[str, Any], title: str) -> None:
    """The same curve to hover over; the page holds all it needs and opens offline."""
    import plotly.graph_objects as go

    xs, figure = positions(rows, axis), go.Figure()
    for name, colour in COLOURS.items():
        ys = [row[name] for row in rows]
        if any(y is not None for y in ys):
            line = {"color": colour, "dash": "dash" if name in DASHED else "solid"}
            figure.add_scatter(
                x=xs, y=ys, name=NAMES[name], mode="lines+markers", line=line,
                customdata=[row["pruned"] for row in rows],
                hovertemplate="%{y:.4f}, %{customdata} neurons pruned",
            )  # fmt: skip
    at = xs[0] if chosen["at"] is None else chosen["at"]
    figure.add_vline(x=at, line_color=INK, annotation_text=f"chosen: {chosen['pruned']} neurons")
    figure.update_layout(
        title=title, template="plotly_white", hovermode="x unified",
        xaxis_title=f"pruning {axis}", yaxis_title="share of images", yaxis_range=[-0.02, 1.05],
    )  # fmt: skip
    figure.write_html(file, include_plotlyjs=True)


def positions(rows: Sequence[Mapping[str, Any]], axis: str) -> list[float]:
    """x of every row; the unpruned model stands one small step left of the first point."""
    known = [row[axis] for row in rows if row[axis] is not None]
    left = -0.03 * max(known) if known else 0.0
    return [left if row[axis] is None else row[axis] for row in rows]


def mask_histograms(file: Path, mask: Mapping[str, Tensor]) -> None:
    """How the mask values of every layer are spread: a row a layer, a colour a count (logarithmic)."""
    from matplotlib.colors import LogNorm

    counts = torch.stack([values.histc(BINS, 0, 1) for values in mask.values()])
    low = [f"{int((values < 0.5).sum())} of {len(values)}" for values in mask.values()]
    lines, small = len(mask), {"fontsize": 8, "color": INK}
    figure, axes = _canvas(8, 0.18 * lines + 1)
    ax = axes[0][0]
    colours = ax.imshow(
        counts.where(counts > 0, torch.nan), cmap="Blues", norm=LogNorm(0.5, max(10, int(counts.max()))), aspect="auto",
        extent=(0, 1, lines, 0), interpolation="none",
    )  # fmt: skip
    ax.axvline(0.5, color=INK, linewidth=1)
    ax.text(1.02, 0, "below 0.5", va="bottom", **small)
    ax.set_xlabel("mask value", **small)
    ax.tick_params(axis="x", labelsize=8)
    right = ax.secondary_yaxis("right")
    for side, words in ((ax, list(mask)), (right, low)):
        side.set_yticks([k + 0.5 for k in range(lines)], words, **small)
        side.tick_params(axis="y", length=0)
        side.spines[:].set_visible(False)
    bar = figure.colorbar(colours, format="%g", pad=0.02, shrink=min(1.0, 20 / lines), anchor=(0, 1))
    bar.set_label("neurons", **small)
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=8)
    figure.savefig(file, metadata={"Software": None})


def sample_png(
    file: Path, clean: Tensor | None, triggered: Tensor, captions: Sequence[str], title: str = "triggered"
) -> None:
    """Triggered images; where the clean ones are known, these above, and what was added below (5 × as strong).

    clean, triggered: uint8 (N, C, H, W), N as many as captions.
    """
    rows = [(title, triggered)]
    if clean is not None:
        added = ((triggered.float() - clean.float()) * 5 + 128).clamp(0, 255).byte()
        rows = [("clean", clean), *rows, ("difference × 5", added)]
    figure, axes = _canvas(1.1 * len(triggered) + 0.9, 1.1 * len(rows) + 0.4, len(rows), len(triggered))
    for line, (name, images) in enumerate(rows):
        for k, image in enumerate(images):
            ax = axes[line][k]
            picture = image.permute(1, 2, 0).numpy()
            grey = picture.shape[-1] == 1
            ax.imshow(picture[..., 0] if grey else picture, cmap="gray" if grey else None, vmin=0, vmax=255)
            ax.set_xticks([])
            ax.set_yticks([])
            if line == 0:
                ax.set_title(captions[k], fontsize=7, color=INK)
        axes[line][0].set_ylabel(name, fontsize=8, color=INK)
    figure.savefig(file, metadata={"Software": None})
