"""Noise levels: which times a sampler visits, and what number the network is told.

Time t is that of rectified flow: a sample at time t is (1−t)·video + t·noise, 1 is pure noise.
The few-step sampler was distilled at four times of the TrigFlow angle τ, where
t = tan τ / (1 + tan τ). The unaccelerated samplers walk a straight grid bent by ``shift``.

The network does not see t but 1000·t, and its rounding matters because it was trained with one:

==========  ================================================================  ==============
convention  grid before the shift                                             1000·t becomes
==========  ================================================================  ==============
``"wan"``   0.999 → 0 (released Wan samplers)                                 truncated
``"rcm"``   start chosen so that the shifted one is σ/(1+σ), σ = 5000, → 0    bf16
==========  ================================================================  ==============

The embedded networks are trained with ``"rcm"`` rounding. All arithmetic is float64 on the CPU;
results are rounded once.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError

Convention = Literal["wan", "rcm"]

MAX_RCM_STEPS = 4
MIDDLE_ANGLES = (1.5, 1.4, 1.0)
_MAX_SHIFT = 1000.0  # far beyond it the first time is 1 in fp32, where λ is infinite
BASELINE_SIGMA = 5000.0
"""First noise level of the grid of the convention "rcm"."""
_WAN_START = 0.9990000128746033  # 0.999 after its storage in fp32, where the released code reads it


def rcm_times(num_steps: int, sigma_max: float) -> Tensor:
    """Times of the few-step sampler: float64 (num_steps + 1,), from sigma_max/(1+sigma_max) to 0.

    The released networks use ``sigma_max`` 80 (text) and 200 (image); a larger one starts closer
    to pure noise.

    Raises:
        UsageError: ``num_steps`` outside 1–4, ``sigma_max`` not positive and finite.
    """
    if num_steps not in range(1, MAX_RCM_STEPS + 1):
        raise UsageError(
            "sampling-steps",
            f"The few-step sampler takes 1 to {MAX_RCM_STEPS} steps, not {num_steps}.",
            f"Use {min(max(int(num_steps), 1), MAX_RCM_STEPS)} steps, or the baseline sampler.",
        )
    _require_sigma(sigma_max, "Use 80 for text to video or 200 for image to video.")
    tangents = [math.tan(angle) for angle in MIDDLE_ANGLES[: num_steps - 1]]
    times = [ratio / (1 + ratio) for ratio in [float(sigma_max), *tangents]]
    return torch.tensor([*times, 0.0], dtype=torch.float64)


def model_timestep(t: Tensor | float) -> Tensor:
    """What the network is told at time ``t``: bf16(1000·fp32(t)), of ``t``'s shape.

    The product is taken in float64. bf16 has 8 significant bits, so 0.9339 becomes 932.
    """
    return (torch.as_tensor(t, dtype=torch.float32).to(torch.float64) * 1000).to(torch.bfloat16)


def flow_sigmas(
    steps: int, shift: float, convention: Convention = "wan", sigma_max: float = BASELINE_SIGMA
) -> Tensor:
    """Times of the unaccelerated samplers: fp32 (steps + 1,), falling, the last one 0.

    ``sigma_max`` is the first noise level in the convention "rcm"; "wan" has a start of its own.
    """
    return torch.tensor([*_shifted(steps, shift, convention, sigma_max), 0.0], dtype=torch.float32)


def flow_timesteps(
    steps: int, shift: float, convention: Convention = "wan", sigma_max: float = BASELINE_SIGMA
) -> Tensor:
    """What the network is told at each of the ``steps`` calls: int64 for "wan", bf16 for "rcm"."""
    if convention == "rcm":
        return model_timestep(flow_sigmas(steps, shift, convention, sigma_max)[:-1])
    told = [int(t * 1000) for t in _shifted(steps, shift, convention, sigma_max)]
    return torch.tensor(told, dtype=torch.int64)


def _shifted(steps: int, shift: float, convention: Convention, sigma_max: float) -> list[float]:
    """σ = s·u / (1 + (s−1)·u) on an even grid of u that stops one step before 0."""
    if steps < 1:
        raise UsageError(
            "sampling-steps", f"There must be at least 1 step, not {steps}.", "Use 50."
        )
    if not 0 < shift <= _MAX_SHIFT:
        raise UsageError(
            "sampling-shift",
            f"shift must be above 0 and at most {_MAX_SHIFT:g}, not {shift}.",
            "Use 5.",
        )
    if convention == "wan":
        start = _WAN_START
    elif convention == "rcm":
        _require_sigma(sigma_max, f"Use {BASELINE_SIGMA:g}.")
        first = sigma_max / (1 + sigma_max)
        start = first / (shift - (shift - 1) * first)
    else:
        raise UsageError(
            "sampling-convention",
            f"The timestep convention {convention!r} is unknown.",
            'Use "wan" for released Wan networks or "rcm" for networks trained here.',
        )
    # The last point of the even grid is 0, so the others are shares of the start.
    grid = [start - index * (start / steps) for index in range(steps)]
    return [shift * u / (1 + (shift - 1) * u) for u in grid]


def _require_sigma(sigma_max: float, fix: str) -> None:
    if not (math.isfinite(sigma_max) and sigma_max > 0):
        raise UsageError(
            "sampling-sigma-max", f"sigma_max must be a positive number, not {sigma_max}.", fix
        )
