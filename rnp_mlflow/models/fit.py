"""Find the architecture that weights belong to; class count, channels and width are read from the weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rnp_mlflow.errors import ModelError
from rnp_mlflow.models import leftovers, nearest
from rnp_mlflow.models.registry import REGISTRY, SMALL, find_entry
from rnp_mlflow.models.skeleton import (
    channels_in,
    classes_in,
    differences,
    first_and_last_weight,
    skeleton,
    width_in,
    with_counters,
)
from rnp_mlflow.models.store import ModelSpec, with_weights
from rnp_mlflow.models.torchvision_nets import is_torchvision

# Architectures that users may mean by the same name as one of ours (the key), with the same state dict.
NAMESAKES = {name: (f"{name}_cifar", f"{name}_cifar_maxpool") for name in ("resnet18", "resnet34", "resnet50")}


@dataclass(frozen=True)
class Candidate:
    """An architecture whose keys and shapes match the weights.

    width: None if the architecture has a fixed width. channels: of its input images. weights: BatchNorm's counters are
    added if they were missing.
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
    """Return every architecture that the weights match by key and shape; at least one.

    name: an architecture of our registry or torchvision's; None: search all. Our networks, torchvision's and its CIFAR
    variants may share a name. All of them are tried unless the name starts with `small/` or `torchvision/`, or `exact`
    is set.

    Raises:
        ModelError: unknown name, or nothing matches; the message has three differences and the nearest architecture.
    """
    names = architectures_named(name, exact) if name is not None else nearest.matching_architectures(weights)
    matches = [match for match in (candidate(each, weights) for each in names) if match is not None]
    if matches:
        return matches
    raise ModelError(describe_mismatch(name, names, weights))


def architectures_named(name: str, exact: bool = False) -> list[str]:
    """Return the architectures that a user may mean by a name; ours as the registry spells it."""
    short = name.removeprefix(SMALL)
    if exact or short != name or name not in REGISTRY:
        first_and_last_weight(name)  # raises for unknown names
        return [short]
    theirs = [f"torchvision/{name}"] if is_torchvision(name) else []
    return [name, *theirs, *NAMESAKES.get(name, ())]


def candidate(name: str, weights: Mapping[str, Tensor]) -> Candidate | None:
    """Return the architecture with the numbers of these weights; None if a key or shape differs."""
    classes, channels, width = (read(name, weights) for read in (classes_in, channels_in, width_in))
    if classes is None or channels is None:
        return None
    own = skeleton(name, classes, channels, width)
    complete = with_counters(own, weights)
    return None if differences(own, complete) else Candidate(name, width, classes, channels, complete)


def describe_mismatch(name: str | None, names: list[str], weights: Mapping[str, Tensor]) -> str:
    """Say in one line why the weights do not match, and which architecture is nearest."""
    if words := leftovers.describe(weights):
        return words
    best, wrong = nearest.nearest(weights)
    words = f"nearest is {unambiguous_name(best)} ({'; '.join(wrong[:3])})"
    if not wrong:
        fits = [unambiguous_name(each) for each in nearest.matching_architectures(weights)]
        words = f"they fit {' and '.join(fits)}: give model={' or model='.join(fits)}"
    if name is None:
        return f"the weights fit no architecture known here: {words}"
    if best in names and wrong:
        words = "no other architecture is nearer"
    first = names[0]
    if classes_in(first, weights) is None:
        return f"{_no_classifier(name, first)}; {words}"
    own_wrong = nearest.differences_from(first, weights)
    more = f" (and {len(own_wrong) - 3} more)" if len(own_wrong) > 3 else ""
    return f"the weights are not {name}'s: {'; '.join(own_wrong[:3])}{more}; {words}"


def _no_classifier(name: str, architecture: str) -> str:
    return f"the weights have no classifier of {name}: no {first_and_last_weight(architecture)[1]} with a row a class"


def count_classes(name: str, weights: Mapping[str, Tensor]) -> int:
    """Return the number of classes: the rows of the classifier's weight.

    Raises:
        ModelError: unknown name, or the weights have no classifier or one without rows; the message has what
            `candidates` says of a failed match.
    """
    names = architectures_named(name)
    for each in names:
        if (found := classes_in(each, weights)) is not None:
            return found
    raise ModelError(describe_mismatch(name, names, weights))


def count_channels(name: str, weights: Mapping[str, Tensor]) -> int:
    """Return the number of channels that the first convolution takes.

    Raises:
        ModelError: unknown name, or the weights have no first convolution.
    """
    for each in architectures_named(name):
        if (found := channels_in(each, weights)) is not None:
            return found
    raise ModelError(f"the weights have no first convolution of {name}: no {first_and_last_weight(name)[0]}")


def match_weights(
    name: str,
    weights: dict[str, Tensor],
    classes: tuple[str, ...],
    input_shape: tuple[int, int, int],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[nn.Module, ModelSpec]:
    """Return the only model of that name that the weights match, in eval mode, and its spec.

    Raises:
        ModelError: unknown name, no match or several, or another class count.
    """
    if (weight_classes := count_classes(name, weights)) != len(classes):
        raise ModelError(f"the weights are for {weight_classes} classes, the images have {len(classes)}")
    matches = candidates(name, weights)
    if len(matches) > 1:
        raise ModelError(f"the weights fit {join_names(matches)}: give model= one of them")
    return matches[0].build(classes, input_shape, mean, std)


def unambiguous_name(architecture: str) -> str:
    """Return a name that means only this architecture."""
    both = find_entry(architecture) and (is_torchvision(architecture) or architecture in NAMESAKES)
    return f"{SMALL}{architecture}" if both else architecture


def join_names(matches: list[Candidate]) -> str:
    return " and ".join(unambiguous_name(match.architecture) for match in matches)
