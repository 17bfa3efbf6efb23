"""Find the architecture nearest to given weights, among ours and torchvision's, by matching keys and shapes."""

import re
from collections.abc import Mapping

from torch import Tensor

from rnp_mlflow.errors import ModelError
from rnp_mlflow.models.registry import REGISTRY
from rnp_mlflow.models.skeleton import COUNTER, channels_in, classes_in, differences, skeleton, width_in, with_counters
from rnp_mlflow.models.torchvision_nets import families

FAMILIES = 2  # number of torchvision's families whose members are all tried
WIDTH_VARIANTS = (
    "resnet18_narrow",
)  # differ from another entry only in default width; the width is read from the weights


def matching_architectures(weights: Mapping[str, Tensor]) -> list[str]:
    """Return all known architectures whose keys and shapes equal those of the weights."""
    return [name for name in plausible(weights) if not differences_from(name, weights)]


def nearest(weights: Mapping[str, Tensor]) -> tuple[str, list[str]]:
    """Return the architecture with the largest fraction of equal keys and shapes, and all differences from it."""
    best = max(plausible(weights), key=lambda name: similarity(name, weights))
    return best, differences_from(best, weights)


def plausible(weights: Mapping[str, Tensor]) -> list[str]:
    """Return our architectures, and those of torchvision's families whose keys are most similar to the weights'.

    torchvision's are spelled `torchvision/NAME` if our registry has the same name, else `NAME`.
    """
    groups = families()
    patterns = {_pattern(key) for key in weights}

    def shared(first: str) -> float:
        own = {_pattern(key) for key in skeleton(f"torchvision/{first}")}
        return len(own & patterns) / len(own | patterns)

    theirs = [name for first in sorted(groups, key=shared, reverse=True)[:FAMILIES] for name in groups[first]]
    ours = [name for name in REGISTRY if name not in WIDTH_VARIANTS]
    return [*ours, *(f"torchvision/{name}" if name in REGISTRY else name for name in theirs)]


def _pattern(key: str) -> str:
    """Return a key without its numbers, so that members of a family look alike."""
    return re.sub(r"\d+", "#", key)


def skeleton_for(name: str, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the skeleton with the classes, channels and width of these weights, or defaults if they are unknown."""
    numbers = classes_in(name, weights) or 2, channels_in(name, weights) or 3, width_in(name, weights)
    try:
        return skeleton(name, *numbers)
    except ModelError:  # a width that this architecture cannot have
        return skeleton(name)


def differences_from(name: str, weights: Mapping[str, Tensor]) -> list[str]:
    """List how the weights differ from this architecture's; missing counters are ignored."""
    own = skeleton_for(name, weights)
    return differences(own, with_counters(own, weights))


def similarity(name: str, weights: Mapping[str, Tensor]) -> float:
    """Return the fraction (0 to 1) of all keys of both that have the same shape in both."""
    own = {k: tuple(v.shape) for k, v in skeleton_for(name, weights).items() if not k.endswith(COUNTER)}
    given = {k: tuple(v.shape) for k, v in weights.items() if not k.endswith(COUNTER)}
    return len(own.items() & given.items()) / max(1, len(own.keys() | given.keys()))
