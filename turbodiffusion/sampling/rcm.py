"""The few-step sampler of rCM-distilled networks: one network call a step, no guidance.

Each step guesses the clean latents, x0 = x − t·v, and then either puts fresh noise on the guess
(SDE, the default, for which the networks were distilled) or follows the velocity to the next time
(ODE: sharper, less forgiving).

Precision is part of the definition: the state is float64, the network sees its ``model_dtype``
rounding, and the fresh noise enters as an fp32 product.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.sampling.loop import NetworkInput, OnStep, Velocity, report, state_device
from turbodiffusion.sampling.noise import Source, draw_noise
from turbodiffusion.sampling.schedule import model_timestep, rcm_times


@torch.no_grad()
def sample_rcm(
    velocity: Velocity,
    noise: Tensor,
    *,
    num_steps: int,
    sigma_max: float,
    generator: Source | None = None,
    ode: bool = False,
    boundary: float | None = None,
    model_dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Clean latents, fp32 of ``noise``'s shape, on ``device``.

    Args:
        velocity: the network; it receives x (``model_dtype``) and timestep_B1 (bf16) on ``device``.
        noise: standard normal start (B, C, T, H, W), see :func:`~.noise.draw_noise`.
        num_steps: network calls, 1–4.
        sigma_max: noise level of the first call, 80 for the text and 200 for the image networks.
        generator: draws the fresh noise of SDE steps, on the CPU. For the released stream this is
            the generator that drew ``noise``. Unused with ``ode``.
        boundary: of two experts, "high" answers until t < boundary and "low" from then on (with
            1 or 2 steps "low" is never reached at 0.9). None: one network, expert "".
        device: where the network runs; default is that of ``noise``.
        on_step: progress, see :data:`~.loop.OnStep`.

    Raises:
        UsageError: steps or sigma_max out of range, an SDE run without a generator.
        Stopped: ``on_step`` returned False.
    """
    times = rcm_times(num_steps, sigma_max).tolist()
    if generator is None and not ode:
        raise UsageError(
            "sampling-generator-missing",
            "SDE steps draw fresh noise and no generator was given.",
            "Pass the generator that drew the start noise, or ode=True.",
        )
    device = torch.device(device) if device is not None else noise.device
    network = NetworkInput(device, model_dtype)
    state = state_device(device)
    x = noise.to(device=state, dtype=torch.float64) * times[0]
    expert = "" if boundary is None else "high"
    for step, (t, t_next) in enumerate(pairwise(times), start=1):
        if boundary is not None and t < boundary:
            expert = "low"
        v = velocity(*network.prepare(x, model_timestep(t)), expert)
        v = v.to(device=state, dtype=torch.float64)
        clean = x - t * v
        if ode:
            x = x - (t - t_next) * v
        else:
            assert generator is not None
            # Drawn at the last step too, where it counts nothing: a generator shared with later
            # runs must advance as the released one does.
            fresh = draw_noise(x.shape, generator).to(state)
            x = (1 - t_next) * clean + t_next * fresh
        report(on_step, step, num_steps, t, clean)
    return x.to(torch.float32).to(device)
