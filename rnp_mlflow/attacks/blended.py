"""Blended injection (Chen et al., 2017, arXiv 1712.05526): a random pattern mixed in at 20 %."""

import torch

from rnp_mlflow.attacks.trigger import AttackContext, AttackEntry, BlendTrigger, PoisoningAttack

ALPHA = 0.2


def build(context: AttackContext) -> PoisoningAttack:
    """Build the attack with uniform noise over the whole image (the 'random pattern' of the paper's section 4.2)."""
    shape = context.clean.shape
    pattern = torch.randint(256, shape, generator=context.generator, dtype=torch.uint8)
    return PoisoningAttack(BlendTrigger(pattern, torch.full((1, *shape[1:]), ALPHA)))


ENTRY = AttackEntry(build)
