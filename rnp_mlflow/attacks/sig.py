"""SIG (Barni et al., ICIP 2019, arXiv 1902.11237): a sinusoid added to images of the target class; clean-label."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rnp_mlflow.attacks.trigger import AttackContext, AttackEntry, PoisoningAttack, to_pixels

DELTA, FREQUENCY = 40.0, 6  # amplitude in pixel values, periods across the image (BackdoorBench's values)


@dataclass(frozen=True)
class AdditiveTrigger:
    """Return x + signal, clipped to 0 … 255. signal: float32 (1, H, W) or (C, H, W)."""

    signal: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        return to_pixels(images + self.signal.to(images.device)).to(images.dtype)


def build(context: AttackContext) -> PoisoningAttack:
    """Build the attack with v(i, j) = Δ sin(2π j f / m), where m is the number of columns j (section 3)."""
    _, height, width = context.clean.shape
    wave = DELTA * torch.sin(2 * math.pi * FREQUENCY * torch.arange(width) / width)
    return PoisoningAttack(AdditiveTrigger(wave.expand(1, height, width).clone()))


ENTRY = AttackEntry(build, AdditiveTrigger, clean_label=True)
