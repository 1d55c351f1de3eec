"""Rendered clips as batches of :mod:`turbodiffusion.train`: what the students are trained on.

The same pool of encoded clips as the teacher's, with the trained text encoder frozen. A batch
follows from the seed, the iteration and the slot, so every number of processes trains alike.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.mini.data import LatentPool
from turbodiffusion.mini.export import find_part, load_embedded_vae
from turbodiffusion.mini.recipe import SizeRecipe
from turbodiffusion.mini.runtime import Worker
from turbodiffusion.models.text_encoder import Tokenizer
from turbodiffusion.train.losses import Batch
from turbodiffusion.train.sources import mixed_seed
from turbodiffusion.weights.load import load_text_encoder

FIRST_POOL = 2048
"""Clips before the first step. The students follow a teacher, which needs fewer than it did."""
_DRAW, _POOL = 5, 7  # tell the seeds of draws and of clips from others


def pool_seed(seed: int) -> int:
    """First scene seed of the pool of a run."""
    return mixed_seed(seed, _POOL) % 2**40


class WorldSource:
    """A :class:`~turbodiffusion.train.sources.Source` of the procedural world.

    Args:
        folder: weights of the autoencoder and the text encoder, else the packaged ones.
        seed: of the run; other runs see other clips.
        micro_batch: clips of a pass.
    """

    pool_type: type[LatentPool] = LatentPool

    def __init__(
        self, size: SizeRecipe, folder: Path, worker: Worker, seed: int, micro_batch: int
    ) -> None:
        self.size, self.device = size, worker.device
        self.seed, self.micro_batch = seed, micro_batch
        card = size.card
        self.text = load_text_encoder(
            find_part(size, folder, "text"), card.text, device=worker.device, dtype=torch.float32
        ).requires_grad_(False)
        self.tokenizer = Tokenizer.from_file(
            find_part(size, folder, "tokenizer"), card.text.text_len
        )
        self.pool = self.open_pool(load_embedded_vae(size, folder, worker))
        self.negative = self.encode(*self.tokenizer([""]))
        self.refreshed = 0

    def open_pool(self, vae: Any) -> LatentPool:
        """An empty pool of this source's clips."""
        card, teacher = self.size.card, self.size.teacher
        recipe = replace(
            teacher, seed=self.seed, refresh=0.5, first_pool=min(FIRST_POOL, teacher.first_pool)
        )
        return self.pool_type(
            recipe, vae, self.tokenizer,
            card.frames, card.height, self.device, pool_seed(self.seed),
        )  # fmt: skip

    @torch.no_grad()
    def encode(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """Embeddings (B, S, text width), float32."""
        ids, mask = ids_BS.to(self.device), mask_BS.to(self.device)
        return self.text.encode(ids, mask, length=ids.shape[1])

    def batch(self, iteration: int, slot: int) -> Batch:
        """The clips of one pass, on the device of the training."""
        if not self.pool.added:
            self.pool.fill()
        while self.refreshed < iteration:
            self.pool.refresh()
            self.refreshed += 1
        seed = mixed_seed(self.seed, _DRAW, iteration, slot)
        generator = torch.Generator(self.device).manual_seed(seed)
        latents, ids, mask = self.pool.draw(self.micro_batch, generator)
        return Batch(latents, self.encode(ids, mask), self.negative)

    def state_dict(self) -> dict[str, Any]:
        """Which clips the pool holds."""
        return {"refreshed": self.refreshed, "pool": self.pool.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Render the same clips again."""
        self.refreshed = state["refreshed"]
        self.pool.load_state_dict(state["pool"])
