"""What the few-step and the unaccelerated sampler share: how they call the network and report.

A sampler knows nothing of prompts, experts' weights or devices' memory. It is given a *velocity*,
a function of the noisy latents, the timestep and the name of the expert that shall answer, and it
tells its progress to an *on_step* function that can end the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from turbodiffusion.errors import Stopped

Velocity = Callable[[Tensor, Tensor, str], Tensor]
"""``velocity(x, timestep_B1, expert) -> v`` of x's shape; expert is "", "high" or "low"."""

VelocityPair = Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor]]
"""The same, returning (with the prompt, with the negative prompt) from one batched call."""

OnStep = Callable[[int, int, float, Callable[[], Tensor]], "bool | None"]
"""``on_step(done, total, t, estimate)`` after each step.

``done`` steps of ``total`` are complete, the network was called at time ``t``, and ``estimate()``
gives its guess of the clean latents (fp32, computed when called). Returning False stops the run.
"""


def state_device(device: torch.device) -> torch.device:
    """Where the sampler keeps its state: with the network, but Apple GPUs have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


@dataclass(frozen=True)
class NetworkInput:
    """Casts the state for the network and its answer back."""

    device: torch.device
    dtype: torch.dtype

    def prepare(self, x: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """State and 0-d timestep as the network's x and timestep_B1."""
        timestep_B1 = timestep.to(self.device).expand(x.shape[0], 1)
        return x.to(device=self.device, dtype=self.dtype), timestep_B1


def report(on_step: OnStep | None, done: int, total: int, t: float, clean: Tensor) -> None:
    """Tell ``on_step`` that a step is complete.

    Raises:
        Stopped: it returned False.
    """
    if on_step is not None and on_step(done, total, t, lambda: clean.to(torch.float32)) is False:
        raise Stopped(f"The run was stopped after step {done} of {total}.")
