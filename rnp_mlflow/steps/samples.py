"""Sample pictures: images with and without a trigger or a proxy, and under them what models answer."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rnp_mlflow.core.evaluate import predict
from rnp_mlflow.core.params import Precision
from rnp_mlflow.core.proxy import ProxyTrigger
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.data.triggered import Triggered, find_counterparts
from rnp_mlflow.report.samples import MOST, ImageRow, difference, draw_samples
from rnp_mlflow.report.style import Caption


@dataclass(frozen=True)
class Respondents:
    """The models whose answers are drawn, by the word that stands before each answer (empty for a single one)."""

    models: dict[str, nn.Module]
    transform: Preprocess
    precision: Precision
    classes: tuple[str, ...]

    def answers(self, images: Tensor, proxy: ProxyTrigger | None = None) -> dict[str, list[str]]:
        """Return the class that each model answers to each image (N, C, H, W), with the proxy if one is given."""
        transform = proxy.composed_with(self.transform) if proxy else self.transform
        return {
            name: [self.classes[k] for k in predict(model, images, transform, self.precision).tolist()]
            for name, model in self.models.items()
        }


def first_of_classes(labels: Tensor, without: int | None = None) -> Tensor:
    """Return the position of the first image of each class but `without`, of the first `MOST` classes; int64."""
    shown = [k for k in labels.unique().tolist() if k != without][:MOST]
    return torch.tensor([int((labels == k).nonzero()[0, 0]) for k in shown], dtype=torch.int64)


def draw_triggered(file: Path, bad: Triggered, clean: ImageSet, respondents: Respondents, caption: Caption) -> None:
    """Draw the first triggered image of up to eight classes, above it the nearest clean image of the class.

    The difference is drawn, too, if all clean images are those that the trigger was added to.
    """
    shown = first_of_classes(bad.true_labels)
    places, same = find_counterparts(bad, clean, shown)
    triggered, note = bad.images[shown], ""
    rows = [ImageRow("triggered", triggered, respondents.answers(triggered))]
    if bool((places >= 0).all()):
        below = clean.images[places.to(clean.images.device)].cpu()
        rows.insert(0, ImageRow("clean", below, respondents.answers(below)))
        if bool(same.all()):
            rows.append(difference(below, triggered))
        else:
            note = "Not all clean images are those that the trigger was added to."
    draw_samples(file, rows, [respondents.classes[k] for k in bad.true_labels[shown].tolist()], caption, note)


def draw_proxied(
    file: Path, holdout: ImageSet, proxy: ProxyTrigger | None, respondents: Respondents, caption: Caption
) -> None:
    """Draw a held-out image of up to eight classes and, with a proxy, the same with it and what it changes.

    The proxy's own class is left out.
    """
    shown = first_of_classes(holdout.labels, proxy.target if proxy else None)
    if not len(shown):
        return
    some, note = holdout[shown.to(holdout.labels.device)], "Held-out images."
    clean = some.images.cpu()
    rows = [ImageRow("clean", clean, respondents.answers(some.images))]
    if proxy:
        changed = respondents.transform.pixels(proxy(respondents.transform(some.images, None))).cpu()
        rows += [
            ImageRow("with the proxy", changed, respondents.answers(some.images, proxy)),
            difference(clean, changed),
        ]
        note += f" The proxy was made to lead to {respondents.classes[proxy.target]}."
    draw_samples(file, rows, [respondents.classes[k] for k in some.labels.tolist()], caption, note)
