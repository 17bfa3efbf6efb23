"""Choose the training images to poison, and build the poisoned training set and the triggered test set."""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from rnp_mlflow.attacks.trigger import AttackEntry, PoisoningAttack, Trigger
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.triggered import Triggered, exclude_target_class
from rnp_mlflow.errors import ConfigError


@dataclass(frozen=True)
class PoisonPlan:
    """Which training images an attack changes.

    indices: training images that get the trigger. labels: their new labels, int64. covers: images that are altered
    but keep their label. Both sets of indices are sorted, int64 and disjoint.
    """

    indices: Tensor
    labels: Tensor
    covers: Tensor


NO_POISON = PoisonPlan(*(torch.empty(0, dtype=torch.int64) for _ in range(3)))


def target_labels(labels: Tensor, classes: int, target: int, mode: str) -> Tensor:
    """Return the attacker's label for each true label: `target`, or for 'all_to_all' the next class."""
    return (labels + 1) % classes if mode == "all_to_all" else torch.full_like(labels, target)


def plan(
    labels: Tensor, attack: AttackEntry, target: int, mode: str, rate: float, *, generator: Generator
) -> PoisonPlan:
    """Choose round(rate × N) images at random among those whose label the attack changes, and their covers.

    A clean-label attack chooses among the images of the target class, and takes all of them if they are fewer.

    Raises:
        ConfigError: target is out of range, the attack cannot be all-to-all, or there are too few images.
    """
    classes = int(labels.max()) + 1
    if not 0 <= target < classes:
        raise ConfigError(f"target={target} is not a class of this dataset; give 0 to {classes - 1}")
    if (attack.clean_label or attack.one_target) and mode == "all_to_all":
        raise ConfigError("label_mode=all_to_all: this attack's trigger leads to one class; give all_to_one")
    targets = target_labels(labels, classes, target, mode)
    candidates = ((labels == targets) if attack.clean_label else (labels != targets)).nonzero().flatten()
    count = round(rate * len(labels))
    if attack.clean_label:
        count = min(count, len(candidates))
    limit = len(labels) / (1 + attack.covers)
    if count > min(len(candidates), limit):
        raise ConfigError(
            f"poison_rate={rate:g} needs {count} images and {attack.covers:g} covers for each, but only "
            f"{len(candidates)} can be poisoned; give at most {min(len(candidates), limit) / len(labels):.2f}"
        )
    if not count:
        least = f"{1 / len(labels):.2g}"
        raise ConfigError(f"poison_rate={rate:g} of {len(labels)} images is less than one; give at least {least}")
    chosen = candidates[torch.randperm(len(candidates), generator=generator)[:count]].sort().values
    is_rest = torch.ones(len(labels), dtype=torch.bool)
    is_rest[chosen] = False
    rest = is_rest.nonzero().flatten()
    covers = rest[torch.randperm(len(rest), generator=generator)[: round(attack.covers * count)]].sort().values
    return PoisonPlan(chosen, targets[chosen], covers)


def poison_training_set(clean: ImageSet, poison: PoisonPlan, attack: PoisoningAttack, generator: Generator) -> ImageSet:
    """Return the poisoned training set; `clean` is not changed."""
    images, labels = clean.images.clone(), clean.labels.clone()
    victims = images[poison.indices]
    images[poison.indices] = attack.poison(victims, generator) if attack.poison else attack.trigger(victims)
    labels[poison.indices] = poison.labels
    if attack.cover and len(poison.covers):
        images[poison.covers] = attack.cover(images[poison.covers], generator)
    return ImageSet(images, labels)


def with_trigger(test: ImageSet, classes: int, target: int, mode: str, trigger: Trigger) -> Triggered:
    """Return the test images with the trigger, except those whose true label is the attacker's label."""
    others = exclude_target_class(test, target_labels(test.labels, classes, target, mode))
    return replace(others, images=trigger(others.images))
