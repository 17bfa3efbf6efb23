"""The architecture nearest to given weights, among ours and torchvision's, by the share of equal keys and shapes."""

import re
from collections.abc import Mapping

from torch import Tensor

from rnp_mlflow.errors import ModelError
from rnp_mlflow.models.registry import REGISTRY
from rnp_mlflow.models.skeleton import COUNTER, channels_in, classes_in, differences, skeleton, width_in, with_counters
from rnp_mlflow.models.torchvision_nets import families

FAMILIES = 2  # torchvision's, of which every member is tried
TWINS = ("resnet18_narrow",)  # ours of another default width: the width is read from the weights


def fitting(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the architectures, of all that are known, whose keys and shapes the weights have."""
    return [name for name in plausible(weights) if not differences_from(name, weights)]


def nearest(weights: Mapping[str, Tensor]) -> tuple[str, list[str]]:
    """Return the architecture with the largest share of equal keys and shapes, and all differences from it."""
    best = max(plausible(weights), key=lambda name: likeness(name, weights))
    return best, differences_from(best, weights)


def plausible(weights: Mapping[str, Tensor]) -> list[str]:
    """Return ours, and the members of the families of torchvision's whose keys are most like these.

    torchvision's have one spelling each: `torchvision/NAME` where ours has the name, too.
    """
    groups = families()
    patterns = {_pattern(key) for key in weights}

    def shared(first: str) -> float:
        own = {_pattern(key) for key in skeleton(f"torchvision/{first}")}
        return len(own & patterns) / len(own | patterns)

    theirs = [name for first in sorted(groups, key=shared, reverse=True)[:FAMILIES] for name in groups[first]]
    ours = [name for name in REGISTRY if name not in TWINS]
    return [*ours, *(f"torchvision/{name}" if name in REGISTRY else name for name in theirs)]


def _pattern(key: str) -> str:
    """A key without its numbers, so that members of a family look alike."""
    return re.sub(r"\d+", "#", key)


def shape_of(name: str, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The skeleton with the classes, channels and width of these weights, as far as they say."""
    numbers = classes_in(name, weights) or 2, channels_in(name, weights) or 3, width_in(name, weights)
    try:
        return skeleton(name, *numbers)
    except ModelError:  # a width that this architecture cannot have
        return skeleton(name)


def differences_from(name: str, weights: Mapping[str, Tensor]) -> list[str]:
    """Say what is wrong with the weights, taken for this architecture's; counters may be missing."""
    own = shape_of(name, weights)
    return differences(own, with_counters(own, weights))


def likeness(name: str, weights: Mapping[str, Tensor]) -> float:
    """Share of keys, of the architecture's and the weights', that both have in the same shape; 0 to 1."""
    own = {k: tuple(v.shape) for k, v in shape_of(name, weights).items() if not k.endswith(COUNTER)}
    given = {k: tuple(v.shape) for k, v in weights.items() if not k.endswith(COUNTER)}
    return len(own.items() & given.items()) / max(1, len(own.keys() | given.keys()))
