"""Which class is taken for which, before and after pruning."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rnp_mlflow.report.style import (
    BLUE,
    COLUMN,
    INK,
    MUTED,
    PAGE,
    RED,
    SMALL,
    Caption,
    canvas,
    plain,
    save,
    short,
    write_caption,
)

NUMBERS, MATRIX = 20, 100  # classes up to which cells have numbers, and up to which there is a matrix at all
NAMED = 5  # of many classes, those that lost most are marked and named


def confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Return how many images of each true class (row) are predicted as each class (column), int64 (K, K)."""
    return (truth * classes + predicted).bincount(minlength=classes**2).view(classes, classes)


def class_accuracy(matrix: Tensor) -> Tensor:
    """Return the accuracy (0 to 1) of each true class, float64 (K,); NaN for a class without images."""
    return matrix.diagonal().double() / matrix.sum(1)


@dataclass(frozen=True)
class ClassAnswers:
    """Labels of clean images, and what the model predicts for them before and after pruning; int64 (N,) each."""

    truth: Tensor
    before: Tensor
    after: Tensor

    def matrices(self, classes: int) -> tuple[Tensor, Tensor]:
        """Return the confusion before and after."""
        return confusion(self.truth, self.before, classes), confusion(self.truth, self.after, classes)


def draw_confusion(file: Path, answers: ClassAnswers, classes: Sequence[str], caption: Caption) -> None:
    """Draw the matrices before and after, and beside them the accuracy of each class; of many classes that alone."""
    matrices = answers.matrices(len(classes))
    note = f"n = {len(answers.truth):,} clean images"
    if len(classes) > MATRIX:
        with canvas(COLUMN, 3.2) as (figure, axes):
            draw_change(axes[0][0], classes, *(class_accuracy(m) for m in matrices))
            write_caption(figure, caption, f"{note}{changes(classes, *(class_accuracy(m) for m in matrices))}")
            save(figure, file)
        return
    widths = {"gridspec_kw": {"width_ratios": (3, 3, 1.6)}}
    longest = max(len(name) for name in ticks(classes)[1])
    with canvas(PAGE, 3.1 + 0.03 * longest, 1, 3, **widths) as (figure, axes):
        for ax, matrix, title in zip(axes[0], matrices, ("before pruning", "after pruning"), strict=False):
            draw_matrix(ax, matrix, classes, title)
        draw_classes(axes[0][2], classes, *(class_accuracy(m) for m in matrices))
        write_caption(figure, caption, f"{note}; a cell's grey is the share of its row")
        save(figure, file)


def draw_matrix(ax: Any, matrix: Tensor, classes: Sequence[str], title: str) -> None:
    """Draw one matrix; in the cells the numbers of images, if there is room."""
    share = (matrix.double() / matrix.sum(1, keepdim=True)).nan_to_num()
    ax.imshow(share, cmap="Greys", vmin=0, vmax=1, interpolation="none", aspect="equal")
    if len(classes) <= NUMBERS:
        size = min(SMALL, 80 / len(classes))
        for row, column in matrix.nonzero().tolist():
            colour = "white" if share[row, column] > 0.55 else INK
            count = f"{int(matrix[row, column])}"
            ax.text(column, row, count, ha="center", va="center", fontsize=size, color=colour)
    places, names = ticks(classes)
    ax.set_xticks(places, names, rotation=90)
    ax.set_yticks(places, names)
    ax.tick_params(length=0, pad=2, labelsize=min(SMALL, 140 / max(len(places), 1)))
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.set_title(f"{title}: ACC {int(matrix.diagonal().sum()) / max(int(matrix.sum()), 1):.3f}")


def ticks(classes: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the places and names of at most some 25 classes, evenly spaced."""
    every = -(-len(classes) // 25)
    places = list(range(0, len(classes), every))
    return places, [short(classes[k], 14, lines=1) for k in places]


def draw_classes(ax: Any, classes: Sequence[str], before: Tensor, after: Tensor) -> None:
    """Draw the accuracy of each class, before as a hollow circle and after as a filled square, joined by a line."""
    ys = range(len(classes))
    size = max(1.5, min(4.0, 90 / len(classes)))
    ax.hlines(ys, before, after, color=MUTED, linewidth=0.8, zorder=1)
    look = {"linestyle": "none", "markersize": size, "markeredgewidth": 0.8}
    ax.plot(before, ys, "o", color=BLUE, markerfacecolor="white", label="before", **look)
    ax.plot(after, ys, "s", color=RED, label="after", **look)
    plain(ax)
    ax.set_ylim(len(classes) - 0.5, -0.5)
    ax.set_yticks(*ticks(classes))
    ax.tick_params(axis="y", length=0, labelsize=min(SMALL, 140 / min(len(classes), 25)))
    ax.set_xlabel("class accuracy")
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=2, frameon=False, handletextpad=0.2, columnspacing=0.8)


def most_lost(before: Tensor, after: Tensor) -> list[int]:
    """Return the classes that lost most accuracy, at most `NAMED`."""
    lost = (before - after).nan_to_num(-1)
    return [k for k in lost.argsort(descending=True, stable=True)[:NAMED].tolist() if lost[k] > 0]


def changes(classes: Sequence[str], before: Tensor, after: Tensor) -> str:
    """Return the names of those classes, with their accuracy before and after."""
    parts = [f"{short(classes[k], 24, 1)} {before[k]:.2f} to {after[k]:.2f}" for k in most_lost(before, after)]
    return f"; lost most: {', '.join(parts)}" if parts else "; no class lost accuracy"


def draw_change(ax: Any, classes: Sequence[str], before: Tensor, after: Tensor) -> None:
    """Draw each class as a dot: its accuracy before and after; mark those that lost most."""
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.7, linestyle="--", label="no change")
    ax.plot(before, after, "o", color=BLUE, markersize=2.5, alpha=0.6, linestyle="none", label="class")
    worst = most_lost(before, after)
    look = {"markersize": 6, "markerfacecolor": "none", "color": RED, "linestyle": "none"}
    ax.plot(before[worst], after[worst], "s", label="lost most", **look)
    plain(ax)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="accuracy of the class before", ylabel="after pruning")
    ax.legend(loc="upper left", frameon=False)
