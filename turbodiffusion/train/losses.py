"""What an iteration minimises, as the trainer sees it, and the two objectives of one network.

An objective is asked for the *phase* of an iteration: which network learns, and closures that each
draw their noise, run the networks and return a loss. The trainer runs ``backward`` after every
closure, so that only one graph is alive at a time; gradients add up, and the processes need to
exchange them after the last one only. Then one optimiser steps.

Losses and the arithmetic around the networks are float64 wherever the networks' answers allow it;
latents are small next to the networks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from turbodiffusion.errors import UsageError
from turbodiffusion.train.exact import ExactCopy
from turbodiffusion.train.times import Times, broadcast

Trained = Literal["student", "fake_score"]
"""The network that an optimiser steps."""


@dataclass(frozen=True)
class Batch:
    """What the objectives need of the data, on the device of the networks.

    Args:
        latents_BCTHW: clean latents.
        context_BSD: text embeddings; ``negative_BSD`` those of the negative (or empty) prompt,
            for guidance and for dropped captions.
        condition_BCTHW: image-to-video only: mask and image latents.
    """

    latents_BCTHW: Tensor
    context_BSD: Tensor
    negative_BSD: Tensor | None = None
    condition_BCTHW: Tensor | None = None

    def negative(self) -> Tensor:
        """Embedding of the negative prompt, repeated over the batch.

        Raises:
            UsageError: the batch has none.
        """
        if self.negative_BSD is None:
            raise UsageError(
                "train-negative",
                "The batch has no embedding of the negative prompt, and guidance or dropped "
                "captions need one.",
                "Add it to the data, or set guidance to 1 and drop to 0.",
            )
        return self.negative_BSD.expand_as(self.context_BSD)


@dataclass(frozen=True)
class LossParts:
    """One loss (0-d, with graph) and numbers to log (0-d, detached)."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


Closure = Callable[[Batch, torch.Generator], LossParts]


@dataclass(frozen=True)
class Phase:
    """One iteration.

    Args:
        name: for logs and timers.
        trains: the network whose optimiser and learning rate step afterwards.
        closures: run in order, each followed by its own backward.
        step: how many times that network has been stepped before; counts its learning rate.
        ema: iteration to give :func:`~.ema.decay` after the step; None: leave the average alone.
    """

    name: str
    trains: Trained
    closures: tuple[Closure, ...]
    step: int
    ema: int | None


@dataclass(frozen=True)
class Networks:
    """The networks of a run. All take ``(x, timestep_B1, context, condition)``.

    ``teacher``, ``fake_score`` and ``leader``, a few-step network that the student stays close to,
    are None where an objective has none. ``exact`` is a copy of the student in a higher precision,
    from which its derivative is taken; see :mod:`~.exact`.
    """

    student: nn.Module
    teacher: nn.Module | None = None
    fake_score: nn.Module | None = None
    leader: nn.Module | None = None
    exact: ExactCopy | None = None

    def derived(self) -> AbstractContextManager[nn.Module]:
        """The network whose derivative stands for that of the student, with its newest weights."""
        return nullcontext(self.student) if self.exact is None else self.exact.opened()

    def need(self, role: Literal["teacher", "fake_score", "leader"]) -> nn.Module:
        """The network of this role.

        Raises:
            UsageError: the run has none.
        """
        network: nn.Module | None = getattr(self, role)
        if network is None:
            raise UsageError(
                "train-network",
                f"The stage needs a network for the role {role!r}, and none was given.",
                "Give the weights of the teacher, as whose copy the fake score starts, or of the "
                "leader.",
            )
        return network


class Objective(Protocol):
    """What a stage minimises."""

    networks: Networks

    def phase(self, iteration: int) -> Phase:
        """What happens in ``iteration`` (from 0)."""
        ...


def dtype_of(network: nn.Module) -> torch.dtype:
    """Precision in which ``network`` computes: its ``compute_dtype``, or that of its weights.

    A sharded network stores its weights in float32 and computes in another type.
    """
    given = getattr(network, "compute_dtype", None)
    return given if given is not None else next(network.parameters()).dtype


def call(
    network: nn.Module, x_BCTHW: Tensor, time_B1: Tensor, context_BSD: Tensor, batch: Batch
) -> Tensor:
    """The velocity of a network at flow times ``time_B1``: float32, or a float64 network's own."""
    dtype = dtype_of(network)
    condition = batch.condition_BCTHW
    out = network(
        x_BCTHW.to(dtype),
        (1000 * time_B1).to(dtype),
        context_BSD.to(dtype),
        None if condition is None else condition.to(dtype),
    )
    return out if out.dtype is torch.float64 else out.float()


def randn(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal float32 noise of the shape of ``like``."""
    return torch.randn(like.shape, generator=generator, device=like.device)


def noisy(x0_BCTHW: Tensor, noise_BCTHW: Tensor, time_B1: Tensor) -> Tensor:
    """``(1 − τ)·x0 + τ·ε``, float64."""
    tau = broadcast(time_B1, x0_BCTHW)
    return (1 - tau) * x0_BCTHW + tau * noise_BCTHW


def noised(times: Times, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The latents of a batch with noise, float64, and the flow times τ (B, 1) that were drawn."""
    x0 = batch.latents_BCTHW
    tau = times.draw(x0.shape[0], generator)
    return noisy(x0, randn(x0, generator), tau), tau


class FlowMatching:
    """Ordinary training: the velocity ε − x0 is the target; captions are dropped at times.

    Also the black-box way to tune sparse attention, where ``student`` has it.

    Args:
        times: distribution of τ; ``drop`` the share of captions replaced by the negative prompt,
            which teaches the unconditional branch of guidance.
    """

    def __init__(self, networks: Networks, times: Times, drop: float = 0.0) -> None:
        self.networks, self.times, self.drop = networks, times, drop

    def phase(self, iteration: int) -> Phase:
        return Phase("flow", "student", (self.loss,), iteration, iteration)

    def loss(self, batch: Batch, generator: torch.Generator) -> LossParts:
        """Mean squared error over all elements."""
        x0 = batch.latents_BCTHW
        tau = self.times.draw(x0.shape[0], generator)
        noise = randn(x0, generator)
        context = batch.context_BSD
        if self.drop:
            chance = torch.rand(x0.shape[0], 1, 1, generator=generator, device=x0.device)
            context = torch.where(chance < self.drop, batch.negative(), context)
        v = call(self.networks.student, noisy(x0, noise, tau), tau, context, batch)
        loss = (v - (noise - x0.float())).square().mean()
        return LossParts(loss, {"flow": loss.detach()})


class SparseAlignment:
    """White-box tuning of sparse attention: the student's velocity follows the dense teacher's.

    Both see the same noisy latents. As published, with the caption only (``guidance`` 1). A network
    that will be sampled with guidance ``s`` is run on the negative prompt as well, and what counts
    is ``u + s·(c − u)``: the difference of the two answers is small next to either of them, so
    following each of them closely still leaves most of it wrong.
    """

    def __init__(
        self, networks: Networks, times: Times, scale: float = 1.0, guidance: float = 1.0
    ) -> None:
        self.networks, self.times, self.scale = networks, times, scale
        self.guidance = guidance

    def phase(self, iteration: int) -> Phase:
        return Phase("sla", "student", (self.loss,), iteration, iteration)

    def loss(self, batch: Batch, generator: torch.Generator) -> LossParts:
        """``scale`` · mean squared difference, with guidance the mean over the two answers and
        their guided sum; logs the last one's share of the target's energy as well."""
        teacher = self.networks.need("teacher")
        x, tau = noised(self.times, batch, generator)
        with torch.no_grad():
            targets = self._answers(teacher, x, tau, batch)
        answers = self._answers(self.networks.student, x, tau, batch)
        pairs = zip(answers, targets, strict=True)
        errors = torch.stack([(v - target).square().mean() for v, target in pairs])
        loss = self.scale * errors.mean()
        share = errors[-1].detach() / targets[-1].square().mean()
        return LossParts(loss, {"sla": loss.detach(), "sla_share": share})

    def _answers(
        self, network: nn.Module, x_BCTHW: Tensor, time_B1: Tensor, batch: Batch
    ) -> list[Tensor]:
        """Velocities for the caption or, with guidance, for neither, for it and their sum."""
        c = call(network, x_BCTHW, time_B1, batch.context_BSD, batch)
        if self.guidance == 1:
            return [c]
        u = call(network, x_BCTHW, time_B1, batch.negative(), batch)
        return [u, c, u + self.guidance * (c - u)]
