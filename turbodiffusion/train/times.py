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

from turbodiffusion.errors import UsageError

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


def unshift_flow(flow: Tensor, shift: float) -> Tensor:
    """The inverse of :func:`shift_flow`."""
    return flow if shift <= 0 else shift_flow(flow, 1 / shift)


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

    def cdf(self, flow: Tensor) -> Tensor:
        """Chance of a draw up to ``flow``, float64."""
        return torch.special.ndtr((flow.logit() - self.mean) / self.std)

    def quantile(self, chance: Tensor) -> Tensor:
        """The inverse of :meth:`cdf`."""
        return (self.mean + self.std * torch.special.ndtri(chance)).sigmoid()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        normal = torch.randn(
            count, 1, generator=generator, device=generator.device, dtype=torch.float64
        )
        return (self.mean + self.std * normal).sigmoid()  # σ/(1 + σ), and no overflow of σ


@dataclass(frozen=True)
class UniformShift:
    """τ uniform, then shifted."""

    shift: float

    def cdf(self, flow: Tensor) -> Tensor:
        """Chance of a draw up to ``flow``, float64."""
        return unshift_flow(flow, self.shift)

    def quantile(self, chance: Tensor) -> Tensor:
        """The inverse of :meth:`cdf`."""
        return shift_flow(chance, self.shift).clamp(0, 1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(
            count, 1, generator=generator, device=generator.device, dtype=torch.float64
        )
        return self.quantile(uniform)


@dataclass(frozen=True)
class Restricted:
    """``times`` on condition that τ lies between ``low`` and ``high``: the range of one expert.

    Drawn by the quantile of a uniform chance, so that no draw is thrown away.
    """

    times: UniformShift | LogNormal
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise UsageError(
                "train-setting",
                f"No flow time lies between {self.low:g} and {self.high:g}.",
                "Give 0 ≤ low < high ≤ 1.",
            )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(
            count, 1, generator=generator, device=generator.device, dtype=torch.float64
        )
        ends = torch.tensor([self.low, self.high], dtype=torch.float64, device=uniform.device)
        low, high = self.times.cdf(ends)
        return self.times.quantile(torch.lerp(low, high, uniform)).clamp(self.low, self.high)


Distribution = UniformShift | LogNormal | Restricted
"""What settings can name."""


def draw_angles(times: Times, count: int, generator: torch.Generator) -> Tensor:
    """Draws of ``times`` as TrigFlow angles, float64 (count, 1)."""
    return flow_to_angle(times.draw(count, generator))
