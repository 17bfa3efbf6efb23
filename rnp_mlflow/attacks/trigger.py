"""What an attack consists of: a trigger (a pure function of images) and how it alters training images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from rnp_mlflow.data.imageset import ImageSet


class Trigger(Protocol):
    """Add the trigger to images: uint8 (N, C, H, W) → a new uint8 tensor of the same shape.

    A trigger is a frozen dataclass whose fields are all tensors, so that it can be stored. The field names are the keys
    of the stored file: do not rename them.
    """

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class AttackContext:
    """What an attacker can use.

    clean: the training set, on the CPU. generator: the source of every random choice. surrogate: when called, trains
    and returns a clean classifier, frozen and in eval mode; it takes float pixels (N, C, H, W), 0 to 255, and returns
    logits.
    """

    clean: ImageSet
    target: int
    generator: Generator
    surrogate: Callable[[], nn.Module]


ImageFn = Callable[[Tensor, Generator], Tensor]  # uint8 images → altered images; randomness from the generator


@dataclass(frozen=True)
class PoisoningAttack:
    """How an attack alters images.

    trigger: applied to test images. poison: applied to poisoned training images; None: the trigger. cover: applied to
    training images that keep their true label, so that the model reacts only to the exact trigger; None: no covers.
    """

    trigger: Trigger
    poison: ImageFn | None = None
    cover: ImageFn | None = None


AttackFactory = Callable[[AttackContext], PoisoningAttack]


@dataclass(frozen=True)
class BlendTrigger:
    """Return (1 - opacity) · x + opacity · pattern, rounded; used for patches and blends.

    pattern: uint8 (C, H, W). opacity: float32 (1, H, W), 0 to 1.
    """

    pattern: Tensor
    opacity: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        return blend(images, self.pattern.to(images.device), self.opacity.to(images.device))


@dataclass(frozen=True)
class AttackEntry:
    """How to build an attack and how to restore its trigger.

    build: builds the attack. restore: rebuilds its trigger from stored tensors. clean_label: poison only images of the
    target class, and keep their label. covers: number of cover images for each poisoned image. one_target: the trigger
    is made for a single class.
    """

    build: AttackFactory
    restore: Callable[..., Trigger] = BlendTrigger
    clean_label: bool = False
    covers: float = 0.0
    one_target: bool = False


def corner_mask(shape: tuple[int, int, int], side: int) -> Tensor:
    """Return the opacity (1, H, W) of a square in the lower right corner, one pixel off the border."""
    _, height, width = shape
    opacity = torch.zeros(1, height, width)
    opacity[:, height - side - 1 : height - 1, width - side - 1 : width - 1] = 1
    return opacity


def blend(images: Tensor, pattern: Tensor, opacity: Tensor) -> Tensor:
    """Return (1 - opacity) · images + opacity · pattern as pixels of the images' dtype; all three broadcast."""
    return to_pixels((1 - opacity) * images + opacity * pattern).to(images.dtype)


def to_pixels(values: Tensor) -> Tensor:
    """Round to whole pixel values and clip to 0 … 255."""
    return values.round().clamp(0, 255)
