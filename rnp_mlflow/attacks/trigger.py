"""What a trigger is: a pure function of images, made once from a seeded generator."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor


class Trigger(Protocol):
    """uint8 (N, C, H, W) → the same images with the trigger in them, a new uint8 tensor."""

    def __call__(self, images: Tensor) -> Tensor: ...


# (image shape (C, H, W), generator) -> a trigger; every random choice comes from the generator.
MakeTrigger = Callable[[tuple[int, int, int], Generator], "Stamp"]


@dataclass(frozen=True)
class Stamp:
    """x' = (1 - opacity) · x + opacity · pattern, rounded; serves patches and blends alike.

    pattern uint8 (C, H, W); opacity float32 (1, H, W), 0 to 1.
    """

    pattern: Tensor
    opacity: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        opacity, pattern = self.opacity.to(images.device), self.pattern.to(images.device)
        return ((1 - opacity) * images + opacity * pattern).round().to(images.dtype)
