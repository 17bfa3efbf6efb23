"""Which model given weights belong to: class count, channels and width are read from the weights themselves."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rnp_mlflow.errors import ModelError
from rnp_mlflow.models import nearest
from rnp_mlflow.models.registry import REGISTRY, SMALL, entry_of
from rnp_mlflow.models.skeleton import (
    channels_in,
    classes_in,
    differences,
    landmarks,
    skeleton,
    width_in,
    with_counters,
)
from rnp_mlflow.models.store import ModelSpec, with_weights
from rnp_mlflow.models.torchvision_nets import is_torchvision

# Architectures that share a state dict with ours of the key's name, which people mean by the same name.
NAMESAKES = {name: (f"{name}_cifar", f"{name}_cifar_maxpool") for name in ("resnet18", "resnet34", "resnet50")}


@dataclass(frozen=True)
class Candidate:
    """An architecture whose keys and shapes the weights have. weights: with BatchNorm's counters, if they lacked them.

    channels: of the images it takes. width: None for an architecture without a choice.
    """

    architecture: str
    width: int | None
    classes: int
    channels: int
    weights: dict[str, Tensor]

    def build(
        self,
        classes: tuple[str, ...],
        input_shape: tuple[int, int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> tuple[nn.Module, ModelSpec]:
        """Return the model with these weights, in eval mode, and its spec.

        Raises:
            ModelError: the weights are for other classes or images, or a value is not finite.
        """
        if self.classes != len(classes):
            raise ModelError(f"the weights are for {self.classes} classes, the images have {len(classes)}")
        if self.channels != input_shape[0]:
            raise ModelError(f"the model takes images of {self.channels} channels, these have {input_shape[0]}")
        spec = ModelSpec(self.architecture, self.width, classes, input_shape, mean, std)
        return with_weights(spec, self.weights), spec


def candidates(name: str | None, weights: Mapping[str, Tensor], exact: bool = False) -> list[Candidate]:
    """Return every architecture that the weights fit, by key and shape; at least one.

    name: of our registry or torchvision's; None looks among all of them. Ours, torchvision's and its CIFAR
    patches may share a name: all are tried unless `small/` or `torchvision/` stands before it, or it is `exact`.

    Raises:
        ModelError: unknown name, or nothing fits; the first three differences and the nearest one are named.
    """
    names = meant_by(name, exact) if name is not None else nearest.fitting(weights)
    found = [each for each in (candidate(one, weights) for one in names) if each is not None]
    if found:
        return found
    raise ModelError(misfit(name, names, weights))


def meant_by(name: str, exact: bool = False) -> list[str]:
    """Return the architectures that a person may mean by a name; ours as the registry spells it."""
    short = name.removeprefix(SMALL)
    if exact or short != name or name not in REGISTRY:
        landmarks(name)  # unknown names end here
        return [short]
    theirs = [f"torchvision/{name}"] if is_torchvision(name) else []
    return [name, *theirs, *NAMESAKES.get(name, ())]


def candidate(name: str, weights: Mapping[str, Tensor]) -> Candidate | None:
    """The architecture with these weights' numbers; None if a key or shape differs."""
    classes, channels, width = (read(name, weights) for read in (classes_in, channels_in, width_in))
    if classes is None or channels is None:
        return None
    own = skeleton(name, classes, channels, width)
    complete = with_counters(own, weights)
    return None if differences(own, complete) else Candidate(name, width, classes, channels, complete)


def misfit(name: str | None, names: list[str], weights: Mapping[str, Tensor]) -> str:
    """One line: why the weights do not fit, and what they fit best."""
    best, wrong = nearest.nearest(weights)
    words = f"nearest is {full_name(best)} ({'; '.join(wrong[:3])})"
    if not wrong:
        fits = [full_name(each) for each in nearest.fitting(weights)]
        words = f"they fit {' and '.join(fits)}: give model={' or model='.join(fits)}"
    if name is None:
        return f"the weights fit no architecture known here: {words}"
    if best in names and wrong:
        words = "no other architecture is nearer"
    first = names[0]
    if classes_in(first, weights) is None:
        return f"the weights have no classifier of {name}: no {landmarks(first)[1]} with a row a class; {words}"
    own_wrong = nearest.differences_from(first, weights)
    more = f" (and {len(own_wrong) - 3} more)" if len(own_wrong) > 3 else ""
    return f"the weights are not {name}'s: {'; '.join(own_wrong[:3])}{more}; {words}"


def count_classes(name: str, weights: Mapping[str, Tensor]) -> int:
    """Rows of the classifier's weight.

    Raises:
        ModelError: unknown name, or the weights lack it, or it has no row.
    """
    for each in meant_by(name):
        if (found := classes_in(each, weights)) is not None:
            return found
    raise ModelError(f"the weights have no classifier of {name}: no {landmarks(name)[1]} with a row a class")


def channels_of(name: str, weights: Mapping[str, Tensor]) -> int:
    """Channels of the images that the first convolution takes.

    Raises:
        ModelError: unknown name, or the weights lack it.
    """
    for each in meant_by(name):
        if (found := channels_in(each, weights)) is not None:
            return found
    raise ModelError(f"the weights have no first convolution of {name}: no {landmarks(name)[0]}")


def fit(
    name: str,
    weights: dict[str, Tensor],
    classes: tuple[str, ...],
    input_shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[nn.Module, ModelSpec]:
    """Return the only model of that name that the weights fit, in eval mode, and its spec.

    Raises:
        ModelError: unknown name, no model or several fit, or the classes are others.
    """
    if (held := count_classes(name, weights)) != len(classes):
        raise ModelError(f"the weights are for {held} classes, the images have {len(classes)}")
    found = candidates(name, weights)
    if len(found) > 1:
        raise ModelError(f"the weights fit {spelled(found)}: give model= one of them")
    return found[0].build(classes, input_shape, mean, std)


def full_name(architecture: str) -> str:
    """A name that means this architecture alone."""
    both = entry_of(architecture) and (is_torchvision(architecture) or architecture in NAMESAKES)
    return f"{SMALL}{architecture}" if both else architecture


def spelled(found: list[Candidate]) -> str:
    return " and ".join(full_name(each.architecture) for each in found)
