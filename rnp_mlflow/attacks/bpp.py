"""BppAttack (Wang, Zhai & Ma, CVPR 2022, arXiv 2205.13383): fewer colours, with Floyd-Steinberg dithering."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rnp_mlflow.attacks.trigger import AttackContext, AttackEntry, PoisoningAttack, to_pixels

LEVELS = 8  # values a channel keeps (the paper's d = 3 bits)


@dataclass(frozen=True)
class QuantiseTrigger:
    """Round each channel to `levels` evenly spaced values, with error diffusion. levels: int64 scalar."""

    levels: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        return dither(images, int(self.levels))

    def negative_samples(self, images: Tensor, generator: Generator) -> Tensor:
        """Add to each image the quantisation error of another image (the paper's negative samples)."""
        other = images[torch.randperm(len(images), generator=generator)]
        return to_pixels(images.float() + self(other) - other.float()).to(images.dtype)


def dither(images: Tensor, levels: int) -> Tensor:
    """Dither as Floyd & Steinberg (1976): 7/16 of a pixel's error goes right, 3/16, 5/16 and 1/16 to the row below.

    images: uint8 (N, C, H, W). The loop visits one pixel at a time, in all images at once.
    """
    height, width = images.shape[2:]
    work = images.permute(2, 3, 0, 1).float().contiguous()  # (H, W, N, C)
    unit = 255 / (levels - 1)
    for row in range(height):
        for column in range(width):
            wanted = work[row, column].clone()
            work[row, column] = (wanted / unit).round().clamp(0, levels - 1) * unit
            error = wanted - work[row, column]
            if column + 1 < width:
                work[row, column + 1] += error * (7 / 16)
            if row + 1 < height:
                work[row + 1, column] += error * (5 / 16)
                if column:
                    work[row + 1, column - 1] += error * (3 / 16)
                if column + 1 < width:
                    work[row + 1, column + 1] += error * (1 / 16)
    return to_pixels(work).permute(2, 3, 0, 1).contiguous().to(images.dtype)


def build(context: AttackContext) -> PoisoningAttack:
    """Build the attack; only the covers are random."""
    trigger = QuantiseTrigger(torch.tensor(LEVELS))
    return PoisoningAttack(trigger, cover=trigger.negative_samples)


ENTRY = AttackEntry(build, QuantiseTrigger, covers=2.0)
