"""Which training images are poisoned, and the sets that follow from it."""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from rnp_mlflow.attacks.registry import Entry
from rnp_mlflow.attacks.trigger import Planted, Trigger
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.triggered import Triggered, aimed_at
from rnp_mlflow.errors import ConfigError


@dataclass(frozen=True)
class PoisonPlan:
    """indices: training images that get the trigger; labels: what they are then called, int64.

    covers: images that are altered and keep their label. Indices are sorted, int64, and share none.
    """

    indices: Tensor
    labels: Tensor
    covers: Tensor


NOTHING = PoisonPlan(*(torch.empty(0, dtype=torch.int64) for _ in range(3)))


def attacked(labels: Tensor, classes: int, target: int, mode: str) -> Tensor:
    """The label that the trigger leads to from each true one: `target`, or for 'all_to_all' the class after it."""
    return (labels + 1) % classes if mode == "all_to_all" else torch.full_like(labels, target)


def plan(labels: Tensor, attack: Entry, target: int, mode: str, rate: float, generator: Generator) -> PoisonPlan:
    """round(rate × N) of the images whose label the attack changes, at random, and the covers it wants.

    A clean-label attack takes images of the target class, all of them where they are fewer than that.

    Raises:
        ConfigError: target is no class, a clean-label attack is to be all-to-all, or images are too few.
    """
    classes = int(labels.max()) + 1
    if not 0 <= target < classes:
        raise ConfigError(f"target={target} is no class of this dataset; give 0 to {classes - 1}")
    if (attack.clean_label or attack.one_target) and mode == "all_to_all":
        raise ConfigError("label_mode=all_to_all: this attack's trigger leads to one class; give all_to_one")
    after = attacked(labels, classes, target, mode)
    candidates = ((labels == after) if attack.clean_label else (labels != after)).nonzero().flatten()
    count = round(rate * len(labels))
    if attack.clean_label:
        count = min(count, len(candidates))
    room = len(labels) / (1 + attack.covers)
    if count > min(len(candidates), room):
        raise ConfigError(
            f"poison_rate={rate:g} asks for {count} images and {attack.covers:g} covers for each, of "
            f"{len(candidates)} that can be poisoned; give at most {min(len(candidates), room) / len(labels):.2f}"
        )
    if not count:
        raise ConfigError(f"poison_rate={rate:g} of {len(labels)} images is none; give at least {1 / len(labels):.2g}")
    chosen = candidates[torch.randperm(len(candidates), generator=generator)[:count]].sort().values
    free = torch.ones(len(labels), dtype=torch.bool)
    free[chosen] = False
    rest = free.nonzero().flatten()
    covers = rest[torch.randperm(len(rest), generator=generator)[: round(attack.covers * count)]].sort().values
    return PoisonPlan(chosen, after[chosen], covers)


def poisoned(clean: ImageSet, poison: PoisonPlan, planted: Planted, generator: Generator) -> ImageSet:
    """The training set as the attacker leaves it; the clean one stays as it is."""
    images, labels = clean.images.clone(), clean.labels.clone()
    victims = images[poison.indices]
    images[poison.indices] = planted.poison(victims, generator) if planted.poison else planted.trigger(victims)
    labels[poison.indices] = poison.labels
    if planted.cover and len(poison.covers):
        images[poison.covers] = planted.cover(images[poison.covers], generator)
    return ImageSet(images, labels)


def triggered(test: ImageSet, classes: int, target: int, mode: str, trigger: Trigger) -> Triggered:
    """Test images with the trigger, without those whose true label is the attacker's."""
    others = aimed_at(test, attacked(test.labels, classes, target, mode))
    return replace(others, images=trigger(others.images))
