"""Randomness: one generator a purpose, all from one seed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator


def generator(seed: int, purpose: str) -> Generator:
    """Return a CPU generator for one purpose: other purposes with the same seed give other numbers."""
    # Not hash(): it differs from process to process.
    mixed = int.from_bytes(purpose.encode().ljust(8, b"\0")[:8], "little")
    return Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + mixed) % 2**63)


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[Generator]:
    """Yield that generator; inside the context torch's global ones, which dropout uses, are seeded from it.

    The global generators are afterwards as they were.
    """
    own = generator(seed, purpose)
    with torch.random.fork_rng():
        torch.manual_seed(own.initial_seed())
        yield own
