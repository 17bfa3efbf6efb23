"""Which training images are poisoned, and the sets that follow from it. All-to-one labels."""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from rnp_mlflow.attacks.trigger import Trigger
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.triggered import Triggered, all_to_one
from rnp_mlflow.errors import ConfigError


@dataclass(frozen=True)
class PoisonPlan:
    """Training indices (sorted, int64) that get the trigger and the label `target`."""

    indices: Tensor
    target: int


def plan(labels: Tensor, target: int, rate: float, generator: Generator) -> PoisonPlan:
    """round(rate × N) of the images that are not of the target class, at random.

    Raises:
        ConfigError: target is no class, or there are too few other images for that rate.
    """
    classes = int(labels.max()) + 1
    if not 0 <= target < classes:
        raise ConfigError(f"target={target} is no class of this dataset; give 0 to {classes - 1}")
    candidates = (labels != target).nonzero().flatten()
    count = round(rate * len(labels))
    if count > len(candidates):
        raise ConfigError(
            f"poison_rate={rate:g} asks for {count} images, but only {len(candidates)} are not of "
            f"the target class; give at most {len(candidates) / len(labels):.2f}"
        )
    chosen = torch.randperm(len(candidates), generator=generator)[:count]
    return PoisonPlan(candidates[chosen].sort().values, target)


def poisoned(clean: ImageSet, poison: PoisonPlan, trigger: Trigger) -> ImageSet:
    """The training set as the attacker leaves it; the clean one stays as it is."""
    if not len(poison.indices):
        return clean
    images, labels = clean.images.clone(), clean.labels.clone()
    images[poison.indices] = trigger(images[poison.indices])
    labels[poison.indices] = poison.target
    return ImageSet(images, labels)


def triggered(test: ImageSet, target: int, trigger: Trigger) -> Triggered:
    """Test images with the trigger, the target class's own left out."""
    others = all_to_one(test, target)
    return replace(others, images=trigger(others.images))
