"""How sure a share is that was measured on n images."""

from math import sqrt

Z = 1.959963984540054  # 97.5 % of the standard normal distribution


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (0 to 1) of `count` independent images (Wilson, JASA 1927)."""
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)
