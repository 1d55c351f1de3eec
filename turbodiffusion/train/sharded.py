"""Batches from shards: what :func:`.sources.open_source` gives for a folder."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from turbodiffusion.errors import UsageError
from turbodiffusion.train.losses import Batch
from turbodiffusion.train.shards import Shards

NEGATIVE = "negative.embed.pt"
"""Beside the shards: the embedding of the negative prompt, which they lack."""

Bad = list[tuple[str, str]]
Place = tuple[int, int]  # iteration, slot


class Sharded:
    """Samples by position: the same for any number of processes, and after any interruption.

    A thread reads them; while the network works on one batch it reads the next, which it knows
    from the order in which slots were asked for before.

    Args:
        shape: (C, T, H, W) of the latents; longer samples are cut to T frames.
        batch: samples of a step, micro_batch: of a pass.
        cache: see :class:`.shards.Shards`.
    """

    def __init__(
        self, folder: Path, seed: int, shape: tuple[int, int, int, int],
        *, batch: int, micro_batch: int, cache: bool | None = None,
    ) -> None:  # fmt: skip
        self.shards, self.shape = Shards(folder, seed, cache=cache), shape
        self.batch_size, self.micro_batch = batch, micro_batch
        path = folder / NEGATIVE
        self.negative = torch.load(path, weights_only=True)[None] if path.is_file() else None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="samples")
        self._following: dict[int, Place] = {}  # slot → (iterations later, slot) asked for next
        self._last: Place | None = None
        self._ahead: tuple[Place, Future[tuple[Batch, Bad]]] | None = None
        self._bad: Bad = []
        self._warn()

    def batch(self, iteration: int, slot: int) -> Batch:
        """The samples of one pass, on the CPU.

        Raises:
            UsageError: the samples have another size.
        """
        place = iteration, slot
        if self._ahead and self._ahead[0] == place:
            reading = self._ahead[1]
        else:
            reading = self._reader.submit(self._read, place)
        batch, self._bad = reading.result()
        if self._last is not None:
            self._following[self._last[1]] = iteration - self._last[0], slot
        self._last, self._ahead = place, None
        if slot in self._following:
            later, other = self._following[slot]
            following = iteration + later, other
            self._ahead = following, self._reader.submit(self._read, following)
        return batch

    def skipped(self) -> dict[str, float]:
        """Damaged shards, incomplete samples in them, and damaged samples met so far."""
        return {
            "skipped_shards": len(self.shards.damaged),
            "skipped_incomplete": self.shards.incomplete,
            "skipped_samples": len(self._bad),
        }

    def state_dict(self) -> dict[str, Any]:
        """Every batch follows from its number; what was skipped is for people."""
        return {"bad": [list(one) for one in self._bad]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self._bad = [(shard, key) for shard, key in state.get("bad", [])]
        self.shards.bad |= set(self._bad)

    def _read(self, place: Place) -> tuple[Batch, Bad]:
        """One batch and what was damaged up to it; the thread's only job."""
        first = place[0] * self.batch_size + place[1] * self.micro_batch
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
        batch = Batch(torch.stack(latents), torch.stack(texts), negative)
        return batch, sorted(self.shards.bad)

    def _warn(self) -> None:
        """Say once, not in every process, what is missing."""
        shards = self.shards
        if (shards.damaged or shards.incomplete) and os.environ.get("RANK", "0") == "0":
            named = "; ".join(shards.damaged[:3]) + "; …" * (len(shards.damaged) > 3)
            warnings.warn(
                f"Of the shards in {shards.folder}, {len(shards.damaged)} are damaged and "
                f"{shards.incomplete} samples incomplete; {len(shards)} samples remain. {named}",
                stacklevel=4,
            )
