"""Adaptive-Blend (Qi et al., ICLR 2023): half of a blended pattern while training, all of it at the test; covers.

Covers carry half a pattern and keep their label, so that poisoned images do not stand apart in feature space.
"""

import torch
from torch import Generator, Tensor

from rnp_mlflow.attacks import blended
from rnp_mlflow.attacks.trigger import Material, Planted, Stamp, mix

PIECES, KEPT = 4, 0.5  # the pattern is cut into 4 × 4 pieces, half of which an image gets
TRAINED_ALPHA = 0.15  # opacity while training; blended.ALPHA at the test


def make(material: Material) -> Planted:
    """The pattern is uniform noise, as Blended's (the authors take a cartoon)."""
    stamp = blended.make(material).trigger
    assert isinstance(stamp, Stamp)

    def some(images: Tensor, generator: Generator) -> Tensor:
        opacity = TRAINED_ALPHA * chosen_pieces(images, generator)
        return mix(images, stamp.pattern.to(images.device), opacity.to(images.device))

    return Planted(stamp, poison=some, cover=some)


def chosen_pieces(images: Tensor, generator: Generator) -> Tensor:
    """1 where an image gets the pattern, else 0; (N, 1, H, W), half of the pieces at random for each."""
    count, _, height, width = images.shape
    order = torch.rand(count, PIECES * PIECES, generator=generator).argsort(1)
    pieces = (order < int(KEPT * PIECES * PIECES)).float().view(count, 1, PIECES, PIECES)
    rows, columns = (torch.arange(side) * PIECES // side for side in (height, width))
    return pieces[:, :, rows[:, None], columns]
