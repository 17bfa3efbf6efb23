"""Does an imported model see what it was trained on? Accuracy near chance most often means that it does not."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rnp_mlflow.core.evaluate import ahead, chance_accuracy, evenly_spaced, predict
from rnp_mlflow.core.params import Precision
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.errors import ModelError

TRIED = 200  # images that each alternative is tried on, at most
SHARE = 0.2  # of the way from chance to 1: no better counts as near chance
BELOW = 0.1  # further below what is recorded elsewhere is far below
SIGNIFICANT = 3.0  # standard errors of paired answers (`core.evaluate.ahead`)
CAUSES = "class order, normalisation, image size, channel order, or an architecture with the same keys"
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "no normalisation": ((0.0,) * 3, (1.0,) * 3),
    "mean and std of 0.5": ((0.5,) * 3, (0.5,) * 3),
    "ImageNet's normalisation": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "pixels from 0 to 255": ((0.0,) * 3, (0.00392157,) * 3),
}


@dataclass(frozen=True)
class Alternative:
    """Another way to read the same images.

    give: the parameters that ask for it, or what to do if there is none. acc: on up to `TRIED` images, 0 to 1.
    better: whether it is ahead of the way that was asked for by more than chance explains.
    """

    name: str
    give: str
    acc: float
    better: bool


@dataclass(frozen=True)
class Images:
    """What an imported model is judged on. clean: images with their labels. classes: of the images, in their order.

    folders: whether the order of class folders made the labels, so that `class_order` can change it. open_norm: whether
    the call may give another mean and std (nothing inside the model or beside it says them).
    """

    clean: ImageSet
    classes: tuple[str, ...]
    folders: bool = True
    open_norm: bool = True


def alternatives(
    model: nn.Module, images: Images, transform: Preprocess, precision: Precision = "fp32"
) -> list[Alternative]:
    """Try the cheap alternatives; the best first."""
    clean = images.clean
    some = clean[evenly_spaced(len(clean), TRIED)]
    answers = predict(model, some.images, transform, precision)
    labels = some.labels.cpu()
    before = answers == labels
    found = []
    for name, give, right in _tried(model, images, some, answers, transform, precision=precision):
        found.append(Alternative(name, give, float(right.double().mean()), ahead(right, before, SIGNIFICANT)))
    return sorted(found, key=lambda each: -each.acc)


def _tried(
    model: nn.Module, images: Images, some: ImageSet, answers: Tensor, transform: Preprocess, *, precision: Precision
) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (name, parameters, whether each prediction is right: bool (N,)) of every alternative to `transform`."""
    labels, channels = some.labels.cpu(), some.images.shape[1]
    if order := other_order(images.classes):
        way, positions = order
        give = f"class_order={way}" if images.folders else f"number the labels in the order of their names as {way}"
        yield f"classes sorted as {way}", give, answers == torch.tensor(positions)[labels]
    for name, (mean, std) in (NORMALISATIONS if images.open_norm else {}).items():
        mean, std = mean[:channels], std[:channels]
        if (mean, std) == (transform.mean, transform.std) or (channels == 1 and "ImageNet" in name):
            continue
        give = f"mean={','.join(map(str, mean))} std={','.join(map(str, std))}"
        yield name, give, predict(model, some.images, Preprocess(mean, std), precision) == labels
    if channels == 3:
        give = "swap them in the weights of the first layer"
        yield "channels as BGR", give, predict(model, some.images.flip(1), transform, precision) == labels


def other_order(classes: tuple[str, ...]) -> tuple[str, list[int]] | None:
    """Return the other order of names that are all numbers, if it differs: its word, each class's place in it."""
    if not all(name.isdecimal() for name in classes):
        return None
    orders = {"number": sorted(classes, key=int), "text": sorted(classes)}
    way = "number" if list(classes) == orders["text"] else "text"
    return None if orders[way] == list(classes) else (way, [orders[way].index(name) for name in classes])


def near_chance(acc: float, labels: Tensor, classes: int) -> float | None:
    """Return the accuracy of chance if `acc` is near it, else None."""
    chance = chance_accuracy(labels, classes)
    return chance if acc <= chance + SHARE * (1 - chance) else None


@dataclass(frozen=True)
class Judgement:
    """How the accuracy is judged. lines: the block to print, empty if nothing is suspicious. tried: the best first."""

    acc: float
    count: int
    lines: list[str]
    tried: list[Alternative]

    def require(self, acc: float) -> None:
        """Hold the model to an accuracy (0 to 1).

        Raises:
            ModelError: it has less; the message says what would give more.
        """
        if self.acc >= acc:
            return
        best = next((each for each in self.tried if each.better), None)
        advice = f"{best.give} would give {best.acc:.4f}" if best else f"usual causes: {CAUSES}"
        raise ModelError(f"ACC {self.acc:.4f} on {self.count} clean images is below require_acc={acc:g}; {advice}")


def check(
    model: nn.Module, images: Images, transform: Preprocess, precision: Precision, *, acc: float, recorded: float | None
) -> Judgement:
    """Compare the accuracy of an imported model with chance, with its record, and with the alternatives.

    acc: on all clean images. recorded: what the model's record says of it elsewhere, None if there is none.
    """
    clean = images.clean
    tried = alternatives(model, images, transform, precision)
    lines = warning(acc, recorded, near_chance(acc, clean.labels, len(images.classes)), len(clean), tried)
    return Judgement(acc, len(clean), lines, tried)


def warning(
    acc: float, recorded: float | None, chance: float | None, count: int, tried: list[Alternative]
) -> list[str]:
    """Return the lines to print; empty if nothing is suspicious.

    acc: on `count` clean images. recorded: what the model says of its accuracy elsewhere. chance: as of `near_chance`.
    """
    ahead = [each for each in tried if each.better]
    far = recorded is not None and recorded - acc > BELOW
    if chance is None and not far and not ahead:
        return []
    why = f"near chance ({chance:.2f})" if chance is not None else "lower than it may be"
    why = f"far below the {recorded:.4f} that the model's record says" if far else why
    lines = [f"  warning: ACC {acc:.4f} on {count} clean images is {why}; usual causes: {CAUSES}"]
    for each in tried:
        mark = "  <- better" if each.better else ""
        lines.append(f"    {each.name} ({each.give}): ACC {each.acc:.4f}{mark}")
    return lines
