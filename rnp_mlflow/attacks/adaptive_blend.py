"""Adaptive-Blend (Qi et al., ICLR 2023): half of a blended pattern in training, all of it at test time.

Covers also carry half of the pattern but keep their label, so that poisoned images are not separable in feature space.
"""

import torch
from torch import Generator, Tensor

from rnp_mlflow.attacks import blended
from rnp_mlflow.attacks.trigger import AttackContext, AttackEntry, BlendTrigger, PoisoningAttack, blend

PIECES, KEPT_SHARE = 4, 0.5  # the pattern is cut into 4 × 4 pieces; each training image gets half of them
TRAINED_ALPHA = 0.15  # opacity in training; at test time it is blended.ALPHA


def build(context: AttackContext) -> PoisoningAttack:
    """Build the attack with uniform noise as its pattern, like Blended (the authors use a cartoon)."""
    trigger = blended.build(context).trigger
    assert isinstance(trigger, BlendTrigger)

    def partial(images: Tensor, generator: Generator) -> Tensor:
        opacity = TRAINED_ALPHA * random_pieces(images, generator)
        return blend(images, trigger.pattern.to(images.device), opacity.to(images.device))

    return PoisoningAttack(trigger, poison=partial, cover=partial)


def random_pieces(images: Tensor, generator: Generator) -> Tensor:
    """Return a (N, 1, H, W) mask: 1 in a random half of each image's pieces, 0 elsewhere."""
    count, _, height, width = images.shape
    order = torch.rand(count, PIECES * PIECES, generator=generator).argsort(1)
    pieces = (order < int(KEPT_SHARE * PIECES * PIECES)).float().view(count, 1, PIECES, PIECES)
    rows, columns = (torch.arange(side) * PIECES // side for side in (height, width))
    return pieces[:, :, rows[:, None], columns]


ENTRY = AttackEntry(build, covers=1.0)
