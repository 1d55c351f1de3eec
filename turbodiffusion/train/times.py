"""Three names of one noise level, and how training draws them.

========  ===========================  =========================================
letter    range                        a noisy sample is
========  ===========================  =========================================
τ, flow   [0, 1], 1 is pure noise      (1 − τ)·x0 + τ·ε
t, angle  [0, π/2], π/2 is pure noise  cos t·x0 + sin t·ε
σ         [0, ∞)                       x0 + σ·ε
========  ===========================  =========================================

σ = τ/(1 − τ) = tan t. Times are float64 (B, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

HALF_PI = math.pi / 2


def sigma_to_flow(sigma: Tensor) -> Tensor:
    """τ = σ/(1 + σ)."""
    return sigma / (1 + sigma)


def flow_to_sigma(flow: Tensor) -> Tensor:
    """σ = τ/(1 − τ), with τ kept far enough below 1 that the result is finite."""
    flow = flow.clamp(0, 1 - torch.finfo(flow.dtype).eps)
    return flow / (1 - flow)


def sigma_to_angle(sigma: Tensor) -> Tensor:
    """t = arctan σ."""
    return sigma.atan()


def flow_to_angle(flow: Tensor) -> Tensor:
    """t = arctan(τ/(1 − τ)), exact at τ = 1 as well."""
    return torch.atan2(flow, 1 - flow)


def angle_to_flow(angle: Tensor) -> Tensor:
    """τ = sin t/(cos t + sin t)."""
    return angle.sin() / (angle.cos() + angle.sin())


def shift_flow(flow: Tensor, shift: float) -> Tensor:
    """s·τ/(1 + (s − 1)·τ): more noise for s > 1. A shift of 0 or below changes nothing."""
    return flow if shift <= 0 else shift * flow / (1 + (shift - 1) * flow)


def broadcast(time_B1: Tensor, like: Tensor) -> Tensor:
    """``time_B1`` as (B, 1, 1, …), to be multiplied with ``like``."""
    return time_B1.reshape(-1, *[1] * (like.ndim - 1))


class Times(Protocol):
    """A distribution of noise levels."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Flow times, float64 (count, 1), on the device of the generator."""
        ...


@dataclass(frozen=True)
class LogNormal:
    """σ = exp(mean + std·N(0, 1))."""

    mean: float
    std: float

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        normal = torch.randn(
            count, 1, generator=generator, device=generator.device, dtype=torch.float64
        )
        return (self.mean + self.std * normal).sigmoid()  # σ/(1 + σ), and no overflow of σ


@dataclass(frozen=True)
class UniformShift:
    """τ uniform, then shifted."""

    shift: float

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(
            count, 1, generator=generator, device=generator.device, dtype=torch.float64
        )
        return shift_flow(uniform, self.shift).clamp(0, 1)


def draw_angles(times: Times, count: int, generator: torch.Generator) -> Tensor:
    """Draws of ``times`` as TrigFlow angles, float64 (count, 1)."""
    return flow_to_angle(times.draw(count, generator))
