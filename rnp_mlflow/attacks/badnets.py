"""BadNets (Gu et al., 2017, arXiv 1708.06733): a white 3 × 3 patch in the lower right corner."""

import torch

from rnp_mlflow.attacks.trigger import Material, Planted, Stamp, corner

SIDE = 3


def make(material: Material) -> Planted:
    """The patch, one pixel off the border; it has no random part."""
    shape = material.clean.shape
    return Planted(Stamp(torch.full(shape, 255, dtype=torch.uint8), corner(shape, SIDE)))
