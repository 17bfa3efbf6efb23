"""Blended injection (Chen et al., 2017, arXiv 1712.05526): a random pattern mixed in at 20 %."""

import torch
from torch import Generator

from rnp_mlflow.attacks.trigger import Stamp

ALPHA = 0.2


def make(shape: tuple[int, int, int], generator: Generator) -> Stamp:
    """Uniform noise over the whole image (the paper's section 4.2 'random pattern')."""
    pattern = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return Stamp(pattern, torch.full((1, *shape[1:]), ALPHA))
