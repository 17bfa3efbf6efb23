"""Random numbers from a seed, and weights that are equal."""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts hold equal tensors under the same names in the same order."""
    return list(one) == list(other) and all(torch.equal(one[k], other[k]) for k in one)
