"""The power schedule of the moving average: its memory is a fixed share of the time trained.

After e updates the average forgets with β(e) = (1 − 1/(e + 1))^(γ + 1), so its profile over the
past is always a power law with relative standard deviation ``s``; γ is the largest real root of
γ³ + 7γ² + (16 − s⁻²)·γ + (12 − s⁻²) = 0. (Karras et al. 2024, "Analyzing and improving the training
dynamics of diffusion models".)
"""

from __future__ import annotations

import math
from functools import cache

from turbodiffusion.errors import UsageError

LARGEST = 12**-0.5
"""No power profile is wider: s = 1/√12 is the plain mean, γ = 0."""


@cache
def exponent(s: float) -> float:
    """γ of the relative standard deviation ``s``.

    Raises:
        UsageError: ``s`` outside (0, 1/√12].
    """
    if not 0 < s <= LARGEST:
        raise UsageError(
            "train-ema",
            f"The width of the moving average must be above 0 and at most {LARGEST:.4f}, not {s}.",
            "Use 0.1.",
        )
    # The coefficients change sign once, so there is one positive root; halving finds it.
    inverse = s**-2
    low, high = 0.0, 2 + math.sqrt(inverse)
    for _ in range(200):
        middle = (low + high) / 2
        value = middle**3 + 7 * middle**2 + (16 - inverse) * middle + (12 - inverse)
        low, high = (middle, high) if value < 0 else (low, middle)
    return (low + high) / 2


def decay(iteration: int, s: float) -> float:
    """β after the update with this effective iteration; 0 before 1, so that the start is lost."""
    return 0.0 if iteration < 1 else (1 - 1 / (iteration + 1)) ** (exponent(s) + 1)
