"""Distribution matching (DMD): the student's videos must look like the teacher's, all in all.

A third network, the *fake score*, keeps learning what the student makes. Where it and the guided
teacher disagree about a noised video of the student, the student moves towards the teacher.

The student's video comes from a *backward simulation*: the few-step sampler itself, started from
noise, with a graph through the last call only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from turbodiffusion.train.consistency import mean_of, whole_samples, zero_where
from turbodiffusion.train.losses import Batch, LossParts, Networks, randn
from turbodiffusion.train.times import HALF_PI, Distribution, broadcast, draw_angles
from turbodiffusion.train.trigflow import ask, ask_guided, mix

GAP_FLOOR = 1e-5


@dataclass(frozen=True)
class DistributionMatching:
    """Settings of both updates.

    Args:
        times: noise levels of the comparison, and of the simulation unless ``angles`` are given.
        scale: of the student's loss; ``guidance`` of the teacher.
        steps: most calls of a simulation; updates cycle through 1 … ``steps``.
        angles: fixed angles of the calls after the first, None to draw them.
    """

    times: Distribution
    scale: float = 1.0
    guidance: float = 5.0
    steps: int = 4
    angles: tuple[float, ...] | None = None

    def simulate(
        self, networks: Networks, batch: Batch, generator: torch.Generator, iteration: int
    ) -> Tensor:
        """A video of the student in ``iteration mod steps + 1`` calls, float64.

        Angles fall from π/2: drawn ones are never above the call before, sample by sample.
        """
        calls = iteration % self.steps + 1
        like = batch.latents_BCTHW
        x = randn(like, generator).double()
        t = torch.full((like.shape[0], 1), HALF_PI, dtype=torch.float64, device=like.device)
        for number in range(1, calls):
            with torch.no_grad():
                clean = ask(networks.student, x, t, batch.context_BSD, batch).clean
            if self.angles is None:
                t = torch.minimum(draw_angles(self.times, like.shape[0], generator), t)
            else:
                t = torch.full_like(t, self.angles[number - 1])
            x = mix(clean, randn(like, generator), t)
        return ask(networks.student, x, t, batch.context_BSD, batch).clean

    def student_loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, iteration: int
    ) -> LossParts:
        """Its gradient with respect to the student's video is ``2·scale·G``, G = (fake − real)/k.

        k is the mean absolute distance of the video from what the teacher would make of it.
        """
        clean = self.simulate(networks, batch, generator, iteration)
        with torch.no_grad():
            t = draw_angles(self.times, clean.shape[0], generator)
            x = mix(clean, randn(clean, generator), t)
            fake = ask(networks.need("fake_score"), x, t, batch.context_BSD, batch).clean
            real = ask_guided(networks.need("teacher"), x, t, batch, self.guidance).clean
            gap = (clean - real).abs().flatten(1).mean(1).clamp_min(GAP_FLOOR)
            push = (fake - real) / broadcast(gap, clean)
        ok = whole_samples(clean, push)
        clean, push = zero_where(~ok, clean), zero_where(~ok, push)
        loss = self.scale * (clean - (clean - push).detach()).square().sum()
        metrics = {"dmd": loss.detach(), "dmd_gap": mean_of(gap, ok), "dmd_broken": (~ok).sum()}
        return LossParts(loss, metrics)

    def critic_loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, iteration: int
    ) -> LossParts:
        """Σ (x̂0 − x_fake)²/sin²t: flow matching of F against cos t·ε − sin t·x̂0.

        That form has no division and is the one computed.
        """
        with torch.no_grad():
            clean = self.simulate(networks, batch, generator, iteration)
        t = draw_angles(self.times, clean.shape[0], generator)
        noise = randn(clean, generator)
        f = ask(
            networks.need("fake_score"), mix(clean, noise, t), t, batch.context_BSD, batch
        ).velocity
        angle = broadcast(t, clean)
        loss = (f - (angle.cos() * noise - angle.sin() * clean)).square().sum()
        return LossParts(loss, {"critic": loss.detach() / clean.numel()})
