"""Videos drawn while training, by the unaccelerated sampler.

Texts are those of the first batch, the noise is always the same, so that the files of a run show
its progress. The network is sharded: every process takes part in every call, the first one writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import ModelCard
from turbodiffusion.models.vae import WanVAE
from turbodiffusion.parallel.ranks import Ranks
from turbodiffusion.sampling.flow import sample_flow
from turbodiffusion.sampling.noise import draw_noise
from turbodiffusion.train.losses import Batch, dtype_of

_STEPS = 20
_SHOWN = 2  # videos side by side


class Sampler:
    """Draws ``samples/iter_….mp4``.

    Args:
        guided: use the card's guidance; a distilled student has it built in.
    """

    def __init__(
        self, network: torch.nn.Module, card: ModelCard, ranks: Ranks, folder: Path,
        vae: WanVAE, *, guided: bool,
    ) -> None:  # fmt: skip
        self.network, self.card, self.ranks, self.folder = network, card, ranks, folder
        self.vae, self.guided = vae, guided

    @torch.no_grad()
    def __call__(self, iteration: int, batch: Batch) -> None:
        latents = self.latents(batch)
        if self.ranks.first:
            self.write(self.folder / f"iter_{iteration:09d}.mp4", latents)

    def latents(self, batch: Batch) -> Tensor:
        """Clean latents of the first texts of ``batch``."""
        dtype, baseline = dtype_of(self.network), self.card.baseline
        text = batch.context_BSD[:_SHOWN].to(dtype)
        y = batch.condition_BCTHW
        y = None if y is None else y[:_SHOWN].to(dtype)

        def velocity(context: Tensor) -> Any:
            return lambda x, timestep, expert: self.network(x, timestep, context, y)

        guided = self.guided and batch.negative_BSD is not None
        empty = batch.negative().to(dtype)[:_SHOWN] if guided else None
        return sample_flow(
            velocity(text), velocity(empty) if empty is not None else None,
            draw_noise((len(text), *batch.latents_BCTHW.shape[1:]), 0),
            steps=_STEPS, shift=baseline.shift, guidance=baseline.guidance if guided else 1.0,
            solver="euler", convention="rcm", model_dtype=dtype, device=self.ranks.device,
        )  # fmt: skip

    def write(self, path: Path, latents: Tensor) -> None:
        """Decode and write, the videos of a batch side by side."""
        from turbodiffusion.media.write import open_writer, side_by_side, to_uint8

        video = to_uint8(self.vae.decode(latents.to(self.vae.dtype)))
        frames = side_by_side(video)
        count, height, width, _ = frames.shape
        with open_writer(path, width, height, self.card.fps, frames=count) as writer:
            writer.write(frames)


def open_vae(card: ModelCard, given: str, device: torch.device) -> WanVAE:
    """The autoencoder in ``given``, or the one that belongs to ``card``.

    Raises:
        UsageError: neither is there.
    """
    from turbodiffusion.errors import WeightsError
    from turbodiffusion.weights.find import find
    from turbodiffusion.weights.load import load_vae

    try:
        path = Path(given) if given else find(card.name, "vae").vae
        return load_vae(path, card.vae, device=device)
    except WeightsError as error:
        raise UsageError(
            "train-samples",
            f"Samples cannot be decoded: {error.message}",
            "Give the autoencoder with --set vae=FILE, or draw none with --set sample_every=0.",
        ) from error
