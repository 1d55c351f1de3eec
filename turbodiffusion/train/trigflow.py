"""TrigFlow: the same networks seen on a circle, x_t = cos t·x0 + sin t·ε.

The networks predict the flow velocity v = ε − x0 of (1 − τ)·x0 + τ·ε. With D = cos t + sin t,

    x at flow time      x_t / D,  τ = sin t / D
    clean latents       x0 = (x_t − sin t·v) / D
    TrigFlow velocity   F = ((cos t − sin t)·x_t + v) / D = dx_t/dt

F is written so that nothing is divided by sin t. A perfect network gives F = cos t·ε − sin t·x0.
Coefficients and results are float64; the network sees its own precision.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from turbodiffusion.train.losses import Batch, call
from turbodiffusion.train.times import angle_to_flow, broadcast


class Answer(NamedTuple):
    """What a network says about x_t: TrigFlow velocity and clean latents, float64."""

    velocity: Tensor
    clean: Tensor


def ask(
    network: nn.Module, x_BCTHW: Tensor, angle_B1: Tensor, context_BSD: Tensor, batch: Batch
) -> Answer:
    """One call of ``network`` at TrigFlow angle t, (B, 1) float64."""
    t = broadcast(angle_B1.double(), x_BCTHW)
    cos, sin = t.cos(), t.sin()
    total = cos + sin
    x = x_BCTHW.double()
    v = call(network, x / total, angle_to_flow(angle_B1.double()), context_BSD, batch).double()
    return Answer(((cos - sin) * x + v) / total, (x - sin * v) / total)


@torch.no_grad()
def ask_guided(
    network: nn.Module, x_BCTHW: Tensor, angle_B1: Tensor, batch: Batch, guidance: float
) -> Answer:
    """The answer pushed away from that to the negative prompt: u + w·(c − u), without graph.

    One call for w = 1, two otherwise.
    """
    cond = ask(network, x_BCTHW, angle_B1, batch.context_BSD, batch)
    if guidance == 1:
        return cond
    uncond = ask(network, x_BCTHW, angle_B1, batch.negative(), batch)
    return Answer(*(u + guidance * (c - u) for c, u in zip(cond, uncond, strict=True)))


def mix(x0_BCTHW: Tensor, noise_BCTHW: Tensor, angle_B1: Tensor) -> Tensor:
    """``cos t·x0 + sin t·ε``, float64."""
    t = broadcast(angle_B1.double(), x0_BCTHW)
    return t.cos() * x0_BCTHW + t.sin() * noise_BCTHW
