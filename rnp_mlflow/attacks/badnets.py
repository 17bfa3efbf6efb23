"""BadNets (Gu et al., 2017, arXiv 1708.06733): a white 3 × 3 patch in the lower right corner."""

import torch

from rnp_mlflow.attacks.trigger import AttackContext, AttackEntry, BlendTrigger, PoisoningAttack, corner_mask

SIDE = 3


def build(context: AttackContext) -> PoisoningAttack:
    """Build the attack: a white patch one pixel off the border, with no random part."""
    shape = context.clean.shape
    return PoisoningAttack(BlendTrigger(torch.full(shape, 255, dtype=torch.uint8), corner_mask(shape, SIDE)))


ENTRY = AttackEntry(build)
