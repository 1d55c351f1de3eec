"""Where batches come from.

A *slot* is one pass's share of a step: a step of 8 samples in parts of 2 has the slots 0 … 3,
spread over processes and accumulation. A source is asked by slot, so a run is the same however
many processes work on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import ModelCard
from turbodiffusion.train.config import TrainConfig
from turbodiffusion.train.losses import Batch

_MASK = 2**63 - 1


def mixed_seed(*numbers: int) -> int:
    """A seed for a generator that differs wherever any of ``numbers`` does (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
        state ^= state >> 31
    return state & _MASK


class Source(Protocol):
    """Batches, in an order that a checkpoint can continue."""

    def batch(self, iteration: int, slot: int) -> Batch:
        """The samples of one pass, on the CPU."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, as JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Lossy(Protocol):
    """A source that may have to leave data out."""

    def skipped(self) -> dict[str, float]:
        """How much, by name, as this process has seen it."""
        ...


def skipped(source: Source) -> dict[str, float]:
    """What ``source`` had to leave out, for the log; nothing where nothing can be damaged."""
    return source.skipped() if isinstance(source, Lossy) else {}


class Noise:
    """Random latents and texts of a card's sizes: to measure speed and memory before data exist."""

    def __init__(self, card: ModelCard, config: TrainConfig) -> None:
        self.seed, self.samples = config.seed, config.micro_batch
        self.shape = latent_shape(card, config)
        self.text = card.dit.text_len, card.dit.text_dim
        self.condition = card.dit.condition_dim

    def batch(self, iteration: int, slot: int) -> Batch:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, 1, iteration, slot))

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(self.samples, *shape, generator=generator)

        condition = draw(self.condition, *self.shape[1:]) if self.condition else None
        negative = torch.zeros(1, *self.text)
        return Batch(draw(*self.shape), draw(*self.text), negative, condition)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Every batch follows from its number alone."""


def latent_shape(card: ModelCard, config: TrainConfig) -> tuple[int, int, int, int]:
    """(C, T, H, W) of the latents that a run trains on, by its settings or the card's."""
    height, width = config.height or card.height, config.width or card.width
    channels, frames, h, w = card.latent_shape(card.frames, height, width)
    return channels, config.latent_frames or frames, h, w


def open_source(card: ModelCard, config: TrainConfig) -> Source:
    """The source that ``config.data`` names.

    Raises:
        UsageError: there is none.
    """
    if config.data == "noise":
        return Noise(card, config)
    if Path(config.data).is_dir():
        from turbodiffusion.train.sharded import Sharded

        return Sharded(
            Path(config.data), config.seed, latent_shape(card, config),
            batch=config.batch, micro_batch=config.micro_batch, cache=config.cache,
        )  # fmt: skip
    raise UsageError(
        "train-data",
        f"There are no training data at {config.data!r}.",
        "Give a folder of shards with --set data=FOLDER; `noise` trains on random latents.",
    )
