"""A model that is often wrong, images for it, and what stands in a figure."""

import matplotlib.text
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from rnp_mlflow.data.imageset import ImageSet

CLASSES = ("plane", "car", "a $bird$", "a class with a name as long as those of ImageNet, lion", "deer", "dog")


class Wrong(nn.Module):
    """Answers by how bright an image (N, 1, H, W) is and not by its class: 3 if dark, else 5; 1 if a corner shines."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        answers = torch.where(x.mean((1, 2, 3)) < 0.3, 3, 5)
        answers = torch.where(x[:, 0, 0, 0] > 0.99, 1, answers)
        return nn.functional.one_hot(answers, 6).float()


def shades() -> ImageSet:
    """Two images a class, in class k of brightness 40 k + 10."""
    labels = torch.arange(12) % 6
    return ImageSet((40 * labels + 10).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous(), labels)


def texts(figure: Figure) -> list[str]:
    """All that is written in a figure."""
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def columns(figure: Figure, count: int) -> list[list[str]]:
    """The title of each column, then what stands under each of its images, without line breaks and ticks."""
    axes = figure.axes
    found = [[axes[k].get_title(), *(ax.get_xlabel() for ax in axes[k::count])] for k in range(count)]
    return [[word.replace("\n", " ").replace(" ✓", "") for word in column] for column in found]


def xs(line: Line2D) -> list[float]:
    """Return the x values of a line."""
    found: list[float] = np.asarray(line.get_xdata(), dtype=float).tolist()
    return found


def ys(line: Line2D) -> list[float]:
    """Return the y values of a line."""
    found: list[float] = np.asarray(line.get_ydata(), dtype=float).tolist()
    return found
