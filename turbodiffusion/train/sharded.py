"""Batches from shards: what :func:`.sources.open_source` gives for a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from turbodiffusion.errors import UsageError
from turbodiffusion.train.losses import Batch
from turbodiffusion.train.shards import Shards

NEGATIVE = "negative.embed.pt"
"""Beside the shards: the embedding of the negative prompt, which they lack."""


class Sharded:
    """Samples by position: the same for any number of processes, and after any interruption.

    Args:
        shape: (C, T, H, W) of the latents; longer samples are cut to T frames.
        batch: samples of a step, micro_batch: of a pass.
    """

    def __init__(
        self, folder: Path, seed: int, shape: tuple[int, int, int, int],
        *, batch: int, micro_batch: int,
    ) -> None:  # fmt: skip
        self.shards, self.shape = Shards(folder, seed), shape
        self.batch_size, self.micro_batch = batch, micro_batch
        path = folder / NEGATIVE
        self.negative = torch.load(path, weights_only=True)[None] if path.is_file() else None

    def batch(self, iteration: int, slot: int) -> Batch:
        """The samples of one pass, on the CPU.

        Raises:
            UsageError: the samples have another size.
        """
        first = iteration * self.batch_size + slot * self.micro_batch
        latents, texts = [], []
        for position in range(first, first + self.micro_batch):
            latent, text, _ = self.shards.load(position)
            latent = latent[:, : self.shape[1]]
            if tuple(latent.shape) != self.shape:
                raise UsageError(
                    "shards-size",
                    f"The samples have latents {list(latent.shape)}, not {list(self.shape)}.",
                    "Set height, width and latent_frames to those of the shards.",
                )
            latents.append(latent.float())
            texts.append(text.float())
        negative = None if self.negative is None else self.negative.float()
        return Batch(torch.stack(latents), torch.stack(texts), negative)

    def state_dict(self) -> dict[str, Any]:
        """Every batch follows from its number; what was skipped is for people."""
        return {"skipped": dict(self.shards.skipped)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
