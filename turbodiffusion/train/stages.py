"""From a preset to settings and networks: what each stage needs of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from turbodiffusion.models.cards import Attention, ModelCard
from turbodiffusion.models.cards import card as card_named
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.train.config import TrainConfig
from turbodiffusion.train.optim import OptimSettings
from turbodiffusion.train.presets import AlignmentLoss, DistillLoss, preset

Role = Literal["student", "teacher", "fake_score"]

STAGES = {
    "flow": "flow matching on latents, as a teacher is trained",
    "sla": "tune sparse-linear attention to follow its dense teacher",
    "sla-flow": "tune sparse-linear attention by flow matching, without a teacher",
    "rcm": "distil a teacher into a few-step student",
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
    if isinstance(config.loss, DistillLoss):
        return ("student", "teacher", "fake_score") if config.loss.matching else (
            "student", "teacher",
        )  # fmt: skip
    return ("student",)


def distilled(config: TrainConfig) -> bool:
    """Whether the student has guidance built in."""
    return isinstance(config.loss, DistillLoss)


def attention_of(config: TrainConfig) -> Attention:
    """How the student's self-attention is computed; sparse blocks are square, as published."""
    if not config.stage.startswith("sla"):
        return Attention("dense")
    block = card_named(config.card).attention.block_k
    return Attention("sla", config.loss.topk, block, block)


def build_network(config: TrainConfig, card: ModelCard, role: Role, device: str = "cpu") -> WanDiT:
    """One network, from ``config.init`` or fresh from the seed; the same in every process.

    Every role starts from the same weights. What a sparse student has and the file has not is its
    projection, which starts at zero. On ``meta`` nothing is filled.

    Raises:
        WeightsError: the weights are missing or do not fit.
    """
    attention = attention_of(config) if role == "student" else Attention("dense")
    with torch.device(device):
        network = WanDiT(card.dit, attention)
    if device == "meta":
        return network
    network.init_weights(torch.Generator().manual_seed(config.seed))
    if config.init:
        _load(network, config.init, card)
    return network


def _load(network: WanDiT, init: str, card: ModelCard) -> None:
    from turbodiffusion.weights.detect import describe
    from turbodiffusion.weights.find import find
    from turbodiffusion.weights.header import read_header
    from turbodiffusion.weights.load import load_dit

    # One expert is trained at a time, so the file of one is enough.
    file = Path(init) if Path(init).is_file() else next(iter(find(init, "dit").dit.values()))
    has_projection = describe(read_header(file)).attention != "dense"
    sparse = network.attention.kind != "dense" and has_projection
    loaded = load_dit(file, card, network.attention if sparse else Attention("dense"))
    network.load_state_dict(loaded.float().state_dict(), strict=False)
