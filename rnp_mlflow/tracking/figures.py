"""Figures of a run. Matplotlib and plotly are imported inside the functions, because each import takes a second."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch
from torch import Tensor

INK, MUTED = "#222222", "#8a8a8a"
COLOURS = {"acc": "#1668b8", "asr": "#c8342b", "ra": "#3b8f4e", "val_acc": "#7fb2e0", "proxy_asr": "#e59a6f"}
BINS = 50  # of mask values
LINE = 16  # characters of a class name that fit above a column of images
DASHED = ("val_acc", "proxy_asr")  # known without the attacker's trigger
NAMES = {
    "acc": "ACC (clean images)",
    "asr": "ASR (triggered → target)",
    "ra": "RA (triggered → true label)",
    "val_acc": "ACC on held-out clean images",
    "proxy_asr": "proxy → suspected class",
}
SELECTED = {"chosen": "chosen", "fixed": "fixed", "oracle": "oracle (sees the trigger)"}  # rows of the summary


def _canvas(width: float, height: float, rows: int = 1, cols: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, cols, squeeze=False)


def curve_png(file: Path, rows: Sequence[Mapping[str, Any]], axis: str, point: Mapping[str, Any], title: str) -> None:
    """Plot ACC, ASR and RA, and on the holdout ACC and the proxy's success rate, over the sweep; mark the point used.

    rows: of pruning_curve.csv, the unpruned model first (its `axis` is None: drawn at the left edge). point: the point
    pruned at: `selected` (its row in the summary), `at`, `pruned`.
    """
    figure, axes = _canvas(8, 4.6)
    ax = axes[0][0]
    xs = positions(rows, axis)
    for name, colour in COLOURS.items():
        ys = [row[name] for row in rows]
        if any(y is not None for y in ys):
            style = "--" if name in DASHED else "-"
            ax.plot(xs, ys, style, color=colour, marker="o", markersize=3, linewidth=1.6, label=NAMES[name])
    at = xs[0] if point["at"] is None else point["at"]
    ax.axvline(at, color=INK, linewidth=1)
    left, right = ax.get_xlim()
    side = ("left", "center", "right")[
        min(2, int(3 * (at - left) / (right - left)))
    ]  # keep the long label above the axes
    ax.annotate(point_label(point), (at, 1.04), ha=side, fontsize=9, color=INK, annotation_clip=False)
    ax.set(xlabel=f"pruning {axis} (first point: before)", ylabel="share of images", ylim=(-0.02, 1.02))
    ax.set_title(title, fontsize=10, color=INK, pad=22, parse_math=False)
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


def curve_html(file: Path, rows: Sequence[Mapping[str, Any]], axis: str, point: Mapping[str, Any], title: str) -> None:
    """Write the same curve as an interactive page that opens offline."""
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
    at = xs[0] if point["at"] is None else point["at"]
    figure.add_vline(x=at, line_color=INK, annotation_text=point_label(point))
    figure.update_layout(
        title=title, template="plotly_white", hovermode="x unified",
        xaxis_title=f"pruning {axis} (first point: before)", yaxis_title="share of images", yaxis_range=[-0.02, 1.05],
    )  # fmt: skip
    figure.write_html(file, include_plotlyjs=True)


def point_label(point: Mapping[str, Any]) -> str:
    """Return the label of the operating point: how it was selected, and how many neurons it prunes."""
    return f"{SELECTED[point['selected']]}: {point['pruned']} neurons"


def positions(rows: Sequence[Mapping[str, Any]], axis: str) -> list[float]:
    """Return x of every row; the unpruned model is placed a small step to the left of the first point."""
    known = [row[axis] for row in rows if row[axis] is not None]
    left = -0.03 * max(known) if known else 0.0
    return [left if row[axis] is None else row[axis] for row in rows]


def mask_histograms(file: Path, mask: Mapping[str, Tensor]) -> None:
    """Plot a histogram of mask values per layer: one row per layer, the count as colour (logarithmic)."""
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
    file: Path, rows: Sequence[tuple[str, Tensor, Sequence[str]]], truth: Sequence[str], note: str = ""
) -> None:
    """Draw rows of images, one column per image: its true class above, the model's prediction below each.

    If there are two rows (without and with the trigger), a third shows their difference × 5. rows: name, uint8
    (N, C, H, W), N predictions. truth: N classes. note: explains the captions, at the bottom.
    """
    rows = list(rows)
    if len(rows) == 2:
        added = ((rows[1][1].float() - rows[0][1].float()) * 5 + 128).clamp(0, 255).byte()
        rows.append(("difference × 5", added, len(truth) * [""]))
    figure, axes = _canvas(1.1 * len(truth) + 0.9, 1.35 * len(rows) + 0.6, len(rows), len(truth))
    plain = {"fontsize": 7, "color": INK, "parse_math": False}  # a class may be named $x$
    for line, (name, images, answers) in enumerate(rows):
        for k, (image, answer) in enumerate(zip(images, answers, strict=True)):
            ax = axes[line][k]
            picture = image.permute(1, 2, 0).numpy()
            grey = picture.shape[-1] == 1
            ax.imshow(picture[..., 0] if grey else picture, cmap="gray" if grey else None, vmin=0, vmax=255)
            ax.set_xticks([])
            ax.set_yticks([])
            if answer:
                ax.set_xlabel(short(f"→ {answer}"), labelpad=2, **plain)
            if line == 0:
                ax.set_title(short(truth[k]), **plain)
        axes[line][0].set_ylabel(name, fontsize=8, color=INK)
    figure.supxlabel(note, fontsize=7, color=MUTED)
    figure.savefig(file, metadata={"Software": None})


def short(name: str) -> str:
    """Wrap a class name to at most two lines of a column's width; a longer name keeps its start and end."""
    most = 2 * LINE - 1
    if len(name) > most:
        name = f"{name[: most // 2]}…{name[-(most // 2) :]}"
    lines = wrap(name, LINE, break_on_hyphens=False) or [name]
    return "\n".join(lines if len(lines) < 3 else [name[:LINE], name[LINE:]])
