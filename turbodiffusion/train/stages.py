"""From a preset to settings and networks: what each stage needs of the trainer."""

from __future__ import annotations

from typing import Literal

import torch

from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import Attention, ModelCard
from turbodiffusion.models.cards import card as card_named
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.train.config import TrainConfig
from turbodiffusion.train.consistency import Continuous, Following
from turbodiffusion.train.fill import fill
from turbodiffusion.train.optim import OptimSettings
from turbodiffusion.train.presets import AlignmentLoss, DistillLoss, preset

Role = Literal["student", "teacher", "fake_score", "leader"]

STAGES = {
    "flow": "flow matching on latents, as a teacher is trained",
    "sla": "tune sparse-linear attention to follow its dense teacher",
    "sla-flow": "tune sparse-linear attention by flow matching, without a teacher",
    "rcm": "distil a teacher into a few-step student",
    "align": "let a merged few-step sparse student (init) follow its dense one (teacher)",
    "match": "distil that sparse student by distribution matching, near its dense one (leader)",
}
"""Name → what it does."""


def settings_of(stage: str, size: str) -> TrainConfig:
    """The complete settings of ``stage`` in the size ``size``.

    Raises:
        UsageError: there is no such stage or size.
    """
    p = preset(size, stage)
    return TrainConfig(
        stage=stage, preset=size, out=f"runs/{size}-{stage}", card=p.card, steps=p.steps,
        batch=p.batch, micro_batch=p.micro_batch, latent_frames=p.latent_frames, optim=p.optim,
        fake_score=p.fake_score or OptimSettings(), parallel=p.parallel, ema=p.ema,
        save_every=p.save_every, exact_derivative=p.exact_derivative, loss=p.loss,
    )  # fmt: skip


def roles(config: TrainConfig) -> tuple[Role, ...]:
    """The networks of a stage."""
    if isinstance(config.loss, AlignmentLoss):
        return "student", "teacher"
    if not isinstance(config.loss, DistillLoss):
        return ("student",)
    found: list[Role] = ["student", "teacher"]
    if config.loss.matching:
        found.append("fake_score")
    if isinstance(config.loss.consistency, Following):
        found.append("leader")
    return tuple(found)


def distilled(config: TrainConfig) -> bool:
    """Whether the student has guidance built in."""
    return isinstance(config.loss, DistillLoss) or config.stage == "align"


def start_of(config: TrainConfig, role: Role) -> str:
    """The weights that a network starts from.

    The fake score learns to be a score and starts from one, the teacher: a student is none.
    """
    given = {"student": "", "teacher": config.teacher, "fake_score": config.teacher}
    return given.get(role, config.leader) or config.init


def require_starts(config: TrainConfig) -> None:
    """Refuse a student that would be its own teacher or leader.

    Raises:
        UsageError: it starts from weights and has a leader, and one of the other two is not given.
    """
    missing = [name for name in ("teacher", "leader") if not getattr(config, name)]
    if config.init and missing and "leader" in roles(config):
        raise UsageError(
            "train-leader",
            f"The student starts from {config.init!r}, and no {' and no '.join(missing)} is given: "
            "it would learn from itself.",
            "Add --set teacher=FILE, the network of many steps, and --set leader=FILE, the dense "
            "network of few.",
        )


def derived(config: TrainConfig) -> bool:
    """Whether the student's derivative is taken."""
    loss = config.loss
    if not isinstance(loss, DistillLoss) or not isinstance(loss.consistency, Continuous):
        return False
    return loss.consistency.scale > 0


def attention_of(config: TrainConfig) -> Attention:
    """How the student's self-attention is computed; sparse blocks are square, as published."""
    if config.stage == "flow" or not config.loss.topk:
        return Attention("dense")
    block = card_named(config.card).attention.block_k
    return Attention("sla", config.loss.topk, block, block)


def empty_network(config: TrainConfig, card: ModelCard, role: Role) -> WanDiT:
    """One network on the meta device, to be filled by :func:`.fill.fill`."""
    attention = attention_of(config) if role == "student" else Attention("dense")
    with torch.device("meta"):
        return WanDiT(card.dit, attention)


def build_network(config: TrainConfig, card: ModelCard, role: Role) -> WanDiT:
    """One whole network on the CPU, from its weights or, in every process alike, from the seed.

    Raises:
        WeightsError: the weights are missing or do not fit.
    """
    network = empty_network(config, card, role)
    fill(network, card, start_of(config, role), config.seed, "cpu")
    return network
