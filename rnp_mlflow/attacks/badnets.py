"""BadNets (Gu et al., 2017, arXiv 1708.06733): a white 3 × 3 patch in the lower right corner."""

import torch

from rnp_mlflow.attacks.trigger import Material, Planted, Stamp

SIDE = 3


def make(material: Material) -> Planted:
    """The patch, one pixel off the border; it has no random part."""
    shape = material.clean.shape
    _, height, width = shape
    opacity = torch.zeros(1, height, width)
    opacity[:, height - SIDE - 1 : height - 1, width - SIDE - 1 : width - 1] = 1
    return Planted(Stamp(torch.full(shape, 255, dtype=torch.uint8), opacity))
