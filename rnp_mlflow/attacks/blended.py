"""Blended injection (Chen et al., 2017, arXiv 1712.05526): a random pattern mixed in at 20 %."""

import torch

from rnp_mlflow.attacks.trigger import Material, Planted, Stamp

ALPHA = 0.2


def make(material: Material) -> Planted:
    """Uniform noise over the whole image (the paper's section 4.2 'random pattern')."""
    shape = material.clean.shape
    pattern = torch.randint(256, shape, generator=material.generator, dtype=torch.uint8)
    return Planted(Stamp(pattern, torch.full((1, *shape[1:]), ALPHA)))
