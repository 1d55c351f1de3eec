"""The smallest model that goes through every line of training: 9×32×32 clips, one layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from turbodiffusion.mini.recipe import SizeRecipe, TeacherRecipe, VAERecipe
from turbodiffusion.mini.runtime import Worker
from turbodiffusion.models.cards import CARDS, ModelCard

_MICRO = CARDS["micro-teacher"]
NANO: ModelCard = replace(
    _MICRO,
    name="nano-teacher",
    dit=replace(_MICRO.dit, dim=64, ffn_dim=128, num_heads=1, num_layers=1),
    vae=replace(_MICRO.vae, dim=8),
    frames=9,
    width=32,
    height=32,
)
CPU = Worker(torch.device("cpu"), torch.float32)
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class NanoSize(SizeRecipe):
    """A size whose card is not among the named ones."""

    @property
    def card(self) -> ModelCard:
        return NANO


def vae_recipe(**changes: Any) -> VAERecipe:
    base = VAERecipe(
        steps=6, minutes=1000, batch=2, lr=1e-3, betas=BETAS, weight_decay=0.0, seed=31,
        warmup=2, crop=(5, 16), crops_per_clip=2, full_every=3, full_batch=1, still_every=2,
    )  # fmt: skip
    return replace(base, **changes)


def teacher_recipe(**changes: Any) -> TeacherRecipe:
    base = TeacherRecipe(
        steps=12, minutes=1000, batch=4, lr=1e-3, betas=BETAS, weight_decay=0.01, seed=32,
        warmup=2, pool=12, first_pool=8, refresh=0.5,
    )  # fmt: skip
    return replace(base, **changes)


def nano(
    vae: VAERecipe | None = None,
    teacher: TeacherRecipe | None = None,
    decoder: VAERecipe | None = None,
) -> NanoSize:
    return NanoSize(
        "nano-teacher",
        vae or vae_recipe(),
        decoder or vae_recipe(seed=33),
        teacher or teacher_recipe(),
    )
