"""rCM: a consistency loss for the student, regularised by distribution matching.

Both networks that learn share one count of iterations. With warm-up W and frequency Fq:

========================  =======================  ==========================
iteration i               who learns               its own count
========================  =======================  ==========================
i < W                     student                  e(i) = i
(i − W) mod Fq = 0        student                  e(i) = W + (i − W) div Fq
otherwise                 fake score               i − e(i) − 1
========================  =======================  ==========================

Without a fake score, or with distribution matching scaled to 0, every iteration is the student's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from turbodiffusion.errors import UsageError
from turbodiffusion.train.consistency import Continuous, Discrete, Following
from turbodiffusion.train.distribution import DistributionMatching
from turbodiffusion.train.losses import Batch, Closure, LossParts, Networks, Phase


@dataclass(frozen=True)
class Schedule:
    """Who learns when; see the module's page. ``every`` is Fq."""

    warmup: int
    every: int
    critic: bool = True

    def is_student(self, iteration: int) -> bool:
        since = iteration - self.warmup
        return not self.critic or since < 0 or since % self.every == 0

    def student_step(self, iteration: int) -> int:
        """e(i)."""
        if not self.critic or iteration < self.warmup:
            return iteration
        return self.warmup + (iteration - self.warmup) // self.every

    def critic_step(self, iteration: int) -> int:
        """Updates of the fake score before this iteration, which is one of them."""
        return iteration - self.student_step(iteration) - 1


class Distillation:
    """The objective. A scale of 0 leaves a loss out.

    Args:
        consistency: in continuous or discrete time, or with a leader.
        matching: distribution matching; None, or no fake score: consistency alone.
        every: Fq, iterations from one update of the student to the next.

    Raises:
        UsageError: nothing to learn from; distribution matching alone with a warm-up.
    """

    def __init__(
        self,
        networks: Networks,
        consistency: Continuous | Discrete | Following,
        matching: DistributionMatching | None = None,
        *,
        every: int = 5,
    ) -> None:
        critic = networks.fake_score is not None and matching is not None and matching.scale > 0
        warmup = consistency.warmup if isinstance(consistency, Continuous) else 0
        if consistency.scale == 0 and (not critic or warmup):
            raise UsageError(
                "train-distill",
                f"The consistency loss is scaled to 0, and distribution matching is "
                f"{'waiting for a warm-up of ' + str(warmup) if critic else 'off'}.",
                "Set warmup to 0 and give distribution matching a fake score, or scale up the "
                "consistency loss.",
            )
        self.networks, self.consistency, self.matching = networks, consistency, matching
        self.schedule = Schedule(warmup, every, critic)

    def phase(self, iteration: int) -> Phase:
        if not self.schedule.is_student(iteration):
            step = self.schedule.critic_step(iteration)
            return Phase("critic", "fake_score", (self._critic(step),), step, None)
        step = self.schedule.student_step(iteration)
        closures: list[Closure] = []
        if self.consistency.scale > 0:
            closures.append(self._consistency(step))
        if self.schedule.critic and iteration >= self.schedule.warmup:
            closures.append(self._matching(step))
        return Phase("student", "student", tuple(closures), step, step)

    def _consistency(self, step: int) -> Closure:
        def closure(batch: Batch, generator: torch.Generator) -> LossParts:
            return self.consistency.loss(self.networks, batch, generator, step)

        return closure

    def _matching(self, step: int) -> Closure:
        def closure(batch: Batch, generator: torch.Generator) -> LossParts:
            assert self.matching is not None
            return self.matching.student_loss(self.networks, batch, generator, step)

        return closure

    def _critic(self, step: int) -> Closure:
        def closure(batch: Batch, generator: torch.Generator) -> LossParts:
            assert self.matching is not None
            return self.matching.critic_loss(self.networks, batch, generator, step)

        return closure
