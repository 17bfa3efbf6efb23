"""Sample pictures: images with and without a trigger, and under them what the suspect model answers."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from rnp_mlflow.core.evaluate import Transform, predict
from rnp_mlflow.core.params import Precision
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.triggered import Triggered
from rnp_mlflow.tracking import figures

CAPTION = "above a column: the true class; under an image (→): what the suspect model answers to it"
Answer = Callable[[Tensor], list[str]]  # images (N, C, H, W) → the class that a model answers to each


def answering(model: nn.Module, transform: Transform, precision: Precision, classes: tuple[str, ...]) -> Answer:
    """Return a function that names the classes a model predicts for images (N, C, H, W)."""
    return lambda images: [classes[k] for k in predict(model, images, transform, precision).tolist()]


def draw(file: Path, bad: Triggered, classes: tuple[str, ...], answer: Answer, test: ImageSet | None = None) -> None:
    """Draw the first triggered image of up to eight true classes; above it the clean one, if `test` is given.

    answer: the model's answers, drawn under the images. test: the test set that the triggered ones were made from.
    """
    shown = [k for k in range(len(classes)) if (bad.true_labels == k).any()][:8]
    first = torch.tensor([int((bad.true_labels == k).nonzero()[0]) for k in shown])
    rows = [("triggered", bad.images[first], answer(bad.images[first]))]
    if test is not None:
        clean = torch.stack([test.images[test.labels == k][0] for k in shown])
        rows.insert(0, ("clean", clean, answer(clean)))
    figures.sample_png(file, rows, [classes[k] for k in shown], CAPTION)
