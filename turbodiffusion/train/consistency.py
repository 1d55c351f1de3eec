"""Consistency losses: points on one path of the teacher must lead the student to one video.

Continuous time (sCM). The student's clean latents f = cos t·x_t − sin t·F must not move along the
teacher's path dx/dt = F_T. With c = cos t, s = sin t and dF the derivative of F along that path
times c·s, the correction of F is

    g = −c·√(1 − r²s²)·(F − F_T) − (r·c·s·x_t + dF)

where r grows from 0 to 1 over the warm-up; at r = 1, g = c·df/dt. It is normalised by ‖g‖ + 0.1 and
enters as a fixed target, so the gradient of the loss with respect to F is −2·scale·g, and its value
is close to ``scale`` whatever is learned: read progress elsewhere.

Discrete time (dCM): the student at t_0 must agree with itself after K Euler steps of the teacher.

A student whose attention is sparse has no derivative to take, but a dense few-step network of the
same weights' family: following that one keeps it consistent as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from turbodiffusion.train import tangents
from turbodiffusion.train.losses import Batch, LossParts, Networks, call, noised, randn
from turbodiffusion.train.times import (
    Distribution,
    broadcast,
    draw_angles,
    flow_to_angle,
    shift_flow,
)
from turbodiffusion.train.trigflow import ask, ask_guided, mix

Derivative = Literal["full", "semi", "difference"]
NORM_FLOOR = 0.1


@dataclass(frozen=True)
class Continuous:
    """Settings of the loss in continuous time.

    Args:
        times: distribution of noise levels; ``scale`` multiplies the loss; ``guidance`` of teacher.
        warmup: student iterations over which r grows to 1; 0: it is 1 from the start.
        derivative: ``full``: JVP in x and t; ``semi``: JVP in x, a difference in t;
            ``difference``: a difference along both. ``step`` is that of differences.
        way: how a JVP is taken.
    """

    times: Distribution
    scale: float = 100.0
    guidance: float = 5.0
    warmup: int = 1000
    derivative: Derivative = "full"
    step: float = 1e-4
    way: tangents.Way = "dual"

    def loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, iteration: int
    ) -> LossParts:
        """Sum over elements and samples; ``iteration`` counts the student's updates."""
        x0 = batch.latents_BCTHW
        t = draw_angles(self.times, x0.shape[0], generator)
        x = mix(x0, randn(x0, generator), t)
        f_teacher = ask_guided(networks.need("teacher"), x, t, batch, self.guidance).velocity
        df = self.derivative_of(networks, batch, x, t, f_teacher)
        f = ask(networks.student, x, t, batch.context_BSD, batch).velocity
        r = 1.0 if self.warmup == 0 else min(1.0, iteration / self.warmup)
        g = correction(f.detach(), f_teacher, df, x, t, r)
        ok = whole_samples(f, g)
        f, g = zero_where(~ok, f), zero_where(~ok, g)
        norm = g.flatten(1).norm(dim=1)
        g = g / broadcast(norm + NORM_FLOOR, g)
        loss = self.scale * (f - f.detach() - g).square().sum()
        metrics = {"scm": loss.detach(), "scm_norm": mean_of(norm, ok), "scm_broken": (~ok).sum()}
        return LossParts(loss, metrics)

    @torch.no_grad()
    def derivative_of(
        self, networks: Networks, batch: Batch, x: Tensor, t_B1: Tensor, f_teacher: Tensor
    ) -> Tensor:
        """dF of the student: its derivative along the teacher's path, times cos t·sin t."""
        with networks.derived() as network:
            return self._derivative(network, batch, x, t_B1, f_teacher)

    def _derivative(
        self, network: nn.Module, batch: Batch, x: Tensor, t_B1: Tensor, f_teacher: Tensor
    ) -> Tensor:
        def student(x_: Tensor, t_: Tensor) -> Tensor:
            return ask(network, x_, t_, batch.context_BSD, batch).velocity

        speed_B1 = t_B1.cos() * t_B1.sin()
        speed = broadcast(speed_B1, x)
        if self.derivative == "full":
            return tangents.jvp(student, (x, t_B1), (speed * f_teacher, speed_B1), self.way)[1]
        cos, sin = math.cos(self.step), math.sin(self.step)
        if self.derivative == "semi":
            along = speed * f_teacher, torch.zeros_like(t_B1)
            f, moved = tangents.jvp(student, (x, t_B1), along, self.way)
            return moved + speed * (cos * f - student(x, t_B1 - self.step)) / sin
        earlier = student(cos * x - sin * f_teacher, t_B1 - self.step)
        return speed * (cos * student(x, t_B1) - earlier) / sin


def correction(
    f: Tensor, f_teacher: Tensor, df: Tensor, x: Tensor, t_B1: Tensor, r: float
) -> Tensor:
    """g of the module's page, before it is normalised."""
    t = broadcast(t_B1, x)
    c, s = t.cos(), t.sin()
    return -c * (1 - r**2 * s**2).sqrt() * (f - f_teacher) - (r * c * s * x + df)


@dataclass(frozen=True)
class Discrete:
    """Settings of the loss in discrete time: ``skip`` steps out of ``steps`` from 1 to 0."""

    scale: float = 100.0
    guidance: float = 5.0
    steps: int = 48
    skip: int = 1
    shift: float = 5.0

    def angles(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """Falling angles t_0 … t_skip of a path, each (count, 1)."""
        width = 1 / self.steps
        u = torch.rand(count, 1, generator=generator, device=generator.device, dtype=torch.float64)
        u = u * (1 - self.skip * width)
        flow = [shift_flow(1 - (u + k * width), self.shift) for k in range(self.skip + 1)]
        return [flow_to_angle(tau) for tau in flow]

    def loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, iteration: int
    ) -> LossParts:
        """Sum over elements and samples."""
        x0 = batch.latents_BCTHW
        angles = self.angles(x0.shape[0], generator)
        x = mix(x0, randn(x0, generator), angles[0])
        clean = ask(networks.student, x, angles[0], batch.context_BSD, batch).clean
        with torch.no_grad():
            for t, t_next in pairwise(angles):
                f = ask_guided(networks.need("teacher"), x, t, batch, self.guidance).velocity
                x = x - broadcast(t - t_next, x) * f
            target = ask(networks.student, x, angles[-1], batch.context_BSD, batch).clean
        ok = whole_samples(clean, target)
        error = zero_where(~ok, clean) - zero_where(~ok, target)
        loss = self.scale * error.square().sum()
        return LossParts(loss, {"dcm": loss.detach(), "dcm_broken": (~ok).sum()})


@dataclass(frozen=True)
class Following:
    """Settings of the squared distance from the velocity of the leader, a few-step network.

    Distribution matching alone lets a student forget modes; this holds it to what it has. On the
    embedded model 5 kept a diversity of 0.81 where 1.5 kept 0.73 and 15 cost a point of accuracy.
    """

    times: Distribution
    scale: float = 5.0

    def loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, iteration: int
    ) -> LossParts:
        """Sum over elements and samples."""
        leader = networks.need("leader")
        x, tau = noised(self.times, batch, generator)
        with torch.no_grad():
            target = call(leader, x, tau, batch.context_BSD, batch)
        v = call(networks.student, x, tau, batch.context_BSD, batch)
        ok = whole_samples(v, target)
        error = zero_where(~ok, v) - zero_where(~ok, target)
        loss = self.scale * error.square().sum()
        metrics = {"follow": error.detach().square().mean(), "follow_broken": (~ok).sum()}
        return LossParts(loss, metrics)


def whole_samples(*tensors: Tensor) -> Tensor:
    """Which samples are finite in all of the tensors, bool (B,)."""
    return torch.stack([x.detach().flatten(1).isfinite().all(1) for x in tensors]).all(0)


def mean_of(values_B: Tensor, chosen_B: Tensor) -> Tensor:
    """Mean of the chosen values, 0 if there are none; nothing waits for the device."""
    return torch.where(chosen_B, values_B, 0).sum() / chosen_B.sum().clamp_min(1)


def zero_where(drop_B: Tensor, x: Tensor) -> Tensor:
    """Samples set to 0, so that they add no loss and no gradient."""
    return x.masked_fill(broadcast(drop_B, x), 0)
