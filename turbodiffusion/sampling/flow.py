"""The unaccelerated sampler that the few-step one is measured against: many steps, guidance.

Every step calls the network twice, with the prompt and with the negative prompt, and exaggerates
the difference: v = v_uncond + g·(v_cond − v_uncond). Two solvers walk the shifted grid: Euler, and
UniPC as in the released Wan scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.sampling.loop import (
    NetworkInput,
    OnStep,
    Velocity,
    VelocityPair,
    report,
    state_device,
)
from turbodiffusion.sampling.schedule import BASELINE_SIGMA, Convention, flow_sigmas, flow_timesteps
from turbodiffusion.sampling.unipc import UniPC

Solver = Literal["unipc", "euler"]
SOLVERS: tuple[Solver, ...] = ("unipc", "euler")


@torch.no_grad()
def sample_flow(
    velocity_cond: Velocity | None,
    velocity_uncond: Velocity | None,
    noise: Tensor,
    *,
    steps: int,
    shift: float,
    guidance: float | Mapping[str, float] = 1.0,
    solver: Solver = "unipc",
    convention: Convention = "wan",
    sigma_max: float = BASELINE_SIGMA,
    boundary: float | None = None,
    velocity_pair: VelocityPair | None = None,
    model_dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Clean latents, fp32 of ``noise``'s shape, on ``device``.

    Args:
        velocity_cond: the network with the prompt; x in ``model_dtype``, timestep_B1 on ``device``
            (bf16 for "rcm", whole numbers in fp32 for "wan").
        velocity_uncond: the same with the negative prompt; not called where the guidance is 1.
        noise: standard normal start (B, C, T, H, W).
        steps, shift: the grid, see :func:`~.schedule.flow_sigmas`.
        guidance: g, or one for each expert: ``{"high": 3.5, "low": 3.5}``.
        convention: "wan" keeps the state in fp32, "rcm" in float64, as their first users do.
        sigma_max: first noise level of the convention "rcm".
        boundary: of two experts, "high" answers while t·1000 ≥ boundary·1000, "low" below.
        velocity_pair: both answers from one batched call; used instead of the two functions.
        device: where the network runs; default is that of ``noise``.
        on_step: progress, see :data:`~.loop.OnStep`.

    Raises:
        UsageError: a setting out of range, guidance without a negative prompt's velocity.
        Stopped: ``on_step`` returned False.
    """
    if solver not in SOLVERS:
        raise UsageError(
            "sampling-solver", f"There is no solver {solver!r}.", f"Use {' or '.join(SOLVERS)}."
        )
    guided = _Guided(velocity_cond, velocity_uncond, velocity_pair, guidance, boundary)
    sigmas = flow_sigmas(steps, shift, convention, sigma_max)
    timesteps = flow_timesteps(steps, shift, convention, sigma_max)
    # The boundary is compared with the time the Wan network is told, not with bf16's coarse one.
    levels = (timesteps if convention == "wan" else sigmas[:-1] * 1000).tolist()
    told = timesteps.to(torch.float32) if convention == "wan" else timesteps

    device = torch.device(device) if device is not None else noise.device
    network = NetworkInput(device, model_dtype)
    state = state_device(device)
    x = noise.to(device=state, dtype=torch.float32 if convention == "wan" else torch.float64)
    unipc = UniPC(sigmas) if solver == "unipc" else None
    grid = sigmas.tolist()
    for i, t in enumerate(grid[:-1]):
        expert = "" if boundary is None else "high" if levels[i] >= boundary * 1000 else "low"
        v = guided(*network.prepare(x, told[i]), expert)
        v = v.to(device=state, dtype=x.dtype)
        clean = x - t * v
        x = unipc.step(i, x, clean) if unipc else x + v * (grid[i + 1] - t)
        report(on_step, i + 1, steps, t, clean)
    return x.to(torch.float32).to(device)


class _Guided:
    """The guided velocity of one run."""

    def __init__(
        self,
        cond: Velocity | None,
        uncond: Velocity | None,
        pair: VelocityPair | None,
        guidance: float | Mapping[str, float],
        boundary: float | None,
    ) -> None:
        experts = ("",) if boundary is None else ("high", "low")
        if isinstance(guidance, Mapping):
            missing = [expert for expert in experts if expert not in guidance]
            if missing:
                raise UsageError(
                    "sampling-guidance",
                    f"There is no guidance for expert {missing[0]!r} in {dict(guidance)}.",
                    "Give one number, or one for each expert.",
                )
            self._scale = {expert: float(guidance[expert]) for expert in experts}
        else:
            self._scale = dict.fromkeys(experts, float(guidance))
        if pair is None and cond is None:
            raise UsageError(
                "sampling-velocity", "No velocity was given.", "Pass velocity_cond or a pair."
            )
        if pair is None and uncond is None and any(g != 1 for g in self._scale.values()):
            raise UsageError(
                "sampling-guidance",
                f"Guidance {guidance} needs the velocity of a negative prompt, and none was given.",
                "Pass velocity_uncond, or use guidance 1.",
            )
        self._cond, self._uncond, self._pair = cond, uncond, pair

    def __call__(self, x: Tensor, timestep_B1: Tensor, expert: str) -> Tensor:
        scale = self._scale[expert]
        if scale == 1 and self._cond is not None:
            return self._cond(x, timestep_B1, expert)
        if self._pair is not None:
            cond, uncond = self._pair(x, timestep_B1, expert)
        else:
            assert self._cond is not None and self._uncond is not None
            cond = self._cond(x, timestep_B1, expert)
            uncond = self._uncond(x, timestep_B1, expert)
        return uncond + scale * (cond - uncond)
