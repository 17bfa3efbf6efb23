"""Images in rows, and under each what a model answers to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rnp_mlflow.report.style import MUTED, PAGE, SMALL, Caption, canvas, save, short, write_caption

LINE = 14  # characters of a class name that fit on a line below an image
MOST = 8  # images a row


@dataclass(frozen=True)
class ImageRow:
    """A row of images, uint8 (N, C, H, W). answers: by the name of a model, the N classes that it predicts."""

    name: str
    images: Tensor
    answers: Mapping[str, Sequence[str]]


def draw_samples(
    file: Path, rows: Sequence[ImageRow], truth: Sequence[str], caption: Caption | str, note: str = ""
) -> None:
    """Draw the rows, one column per image: its true class above, under each image every model's answer to it.

    A tick follows an answer that is the true class. truth: N classes, at most `MOST`. note: what else has to be known.
    """
    below = [[answers_below(row, k, truth[k]) for k in range(len(truth))] for row in rows]
    tall = [0.84 + 0.1 * max(words.count("\n") + bool(words) for words in row) for row in below]
    ratios = {"gridspec_kw": {"height_ratios": tall}}
    width = max(PAGE * len(truth) / MOST, PAGE / 2)
    with canvas(width, sum(tall) + 0.65, len(rows), len(truth), **ratios) as (figure, axes):
        for row, words, line in zip(rows, below, axes, strict=True):
            for image, answers, ax in zip(row.images, words, line, strict=True):
                show(ax, image)
                ax.set_xlabel(answers, labelpad=2, fontsize=SMALL, linespacing=1.1)
            line[0].set_ylabel(row.name)
        for ax, name in zip(axes[0], truth, strict=True):
            ax.set_title(short(name, LINE), fontsize=SMALL, pad=3)
        read = "Above a column: the true class; below an image: what the model answers to it."
        write_caption(figure, caption, f"{read} {note}".strip())
        save(figure, file, svg=False)


def difference(first: Tensor, second: Tensor) -> ImageRow:
    """Return a row with what was added to the first images to get the second ones, × 5, around grey."""
    added = ((second.float() - first.float()) * 5 + 128).clamp(0, 255).byte()
    return ImageRow("difference × 5", added, {})


def answers_below(row: ImageRow, place: int, truth: str) -> str:
    """Return the lines that stand under an image."""
    return "\n".join(answer_line(name, found[place], truth) for name, found in row.answers.items())


def answer_line(name: str, answer: str, truth: str) -> str:
    """Return what stands under an image: the model's name, if it needs one, its answer, and a tick if that is right."""
    words = short(f"{name} {answer}".strip(), LINE)
    return f"{words} ✓" if answer == truth else words


def show(ax: Any, image: Tensor) -> None:
    """Draw one image, uint8 (C, H, W)."""
    picture = image.permute(1, 2, 0).numpy()
    grey = picture.shape[-1] == 1
    ax.imshow(picture[..., 0] if grey else picture, cmap="gray" if grey else None, vmin=0, vmax=255)
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set(color=MUTED, linewidth=0.4)
