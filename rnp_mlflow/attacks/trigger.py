"""What an attacker makes: a trigger, a pure function of images, and how training images are altered with it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from rnp_mlflow.data.imageset import ImageSet


class Trigger(Protocol):
    """uint8 (N, C, H, W) → the same images with the trigger in them, a new uint8 tensor.

    A frozen dataclass whose fields are all tensors, so that it can be stored.
    """

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Material:
    """What the attacker has.

    clean: the training set, on the CPU. generator: the source of every random choice.
    surrogate: trains a clean classifier when called; float pixels (N, C, H, W), 0 to 255, in, logits out;
    in eval mode, frozen.
    """

    clean: ImageSet
    target: int
    generator: Generator
    surrogate: Callable[[], nn.Module]


Alter = Callable[[Tensor, Generator], Tensor]  # uint8 images → altered ones, with draws from the generator


@dataclass(frozen=True)
class Planted:
    """trigger: what a test image gets. poison: what a poisoned training image gets, where that differs.

    cover: what a training image gets that keeps its true label, so that only the exact trigger counts.
    """

    trigger: Trigger
    poison: Alter | None = None
    cover: Alter | None = None


Make = Callable[[Material], Planted]


@dataclass(frozen=True)
class Stamp:
    """x' = (1 - opacity) · x + opacity · pattern, rounded; serves patches and blends alike.

    pattern uint8 (C, H, W); opacity float32 (1, H, W), 0 to 1.
    """

    pattern: Tensor
    opacity: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        return mix(images, self.pattern.to(images.device), self.opacity.to(images.device))


def corner(shape: tuple[int, int, int], side: int) -> Tensor:
    """Opacity (1, H, W) of a square in the lower right corner, one pixel off the border."""
    _, height, width = shape
    opacity = torch.zeros(1, height, width)
    opacity[:, height - side - 1 : height - 1, width - side - 1 : width - 1] = 1
    return opacity


def mix(images: Tensor, pattern: Tensor, opacity: Tensor) -> Tensor:
    """(1 - opacity) · images + opacity · pattern as pixels of the images' type; all three broadcast."""
    return pixels((1 - opacity) * images + opacity * pattern).to(images.dtype)


def pixels(values: Tensor) -> Tensor:
    """Rounded to whole pixel values, 0 to 255."""
    return values.round().clamp(0, 255)
