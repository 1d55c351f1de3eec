"""What image-to-video training needs beside the clips: their first frames, and a wider network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.mini import world
from turbodiffusion.mini.captions import motion_captions
from turbodiffusion.mini.data import LatentPool
from turbodiffusion.mini.export import size_name
from turbodiffusion.mini.recipe import SizeRecipe
from turbodiffusion.mini.runtime import Worker
from turbodiffusion.mini.source import WorldSource
from turbodiffusion.models.cards import CARDS, ModelCard
from turbodiffusion.pipeline.stages import with_mask
from turbodiffusion.train.losses import Batch
from turbodiffusion.weights.spec import Spec, TensorSpec


def i2v_card(size: SizeRecipe) -> ModelCard:
    """The image-to-video teacher's card of an embedded size.

    Raises:
        UsageError: the size has none.
    """
    name = f"{size_name(size)}-i2v-teacher"
    if name not in CARDS:
        raise UsageError(
            "mini-i2v-size",
            f"There is no image-to-video model of the size {size_name(size)}.",
            "Use --size mini.",
        )
    return CARDS[name]


class ImagePool(LatentPool):
    """A pool whose entries are the latents of a clip and, behind them, of its first frame alone."""

    def encode(self, video_BCFHW: Tensor) -> Tensor:
        still = torch.zeros_like(video_BCFHW)  # mid-grey after the first frame
        still[:, :, 0] = video_BCFHW[:, :, 0]
        parts = [self.vae.encode_parallel(one) for one in (video_BCFHW, still)]
        return torch.cat(parts, 1)

    def write(self, scenes: world.Scenes, generator: torch.Generator) -> list[str]:
        return motion_captions(scenes, generator)


class ImageSource(WorldSource):
    """Rendered clips with one object, the condition of their first frame, and motion captions.

    Args:
        first_pool: clips that training starts with; the others as of :class:`WorldSource`.
    """

    pool_type = ImagePool

    def __init__(
        self, size: SizeRecipe, folder: Path, worker: Worker, seed: int, micro_batch: int,
        first_pool: int,
    ) -> None:  # fmt: skip
        first = min(first_pool, size.teacher.pool)
        teacher = replace(size.teacher, two_objects=0.0, first_pool=first)
        self.condition_dim = i2v_card(size).dit.condition_dim
        super().__init__(replace(size, teacher=teacher), folder, worker, seed, micro_batch)

    def batch(self, iteration: int, slot: int) -> Batch:
        """The clips of one pass with their conditions, on the device of the training."""
        both = super().batch(iteration, slot)
        latents, image = both.latents_BCTHW.chunk(2, 1)
        condition = with_mask(image, self.condition_dim)
        return replace(both, latents_BCTHW=latents, condition_BCTHW=condition)


class Widened:
    """A state dict as a stream, with ``columns`` zero ones behind those of the patch embedding."""

    NAME = "patch_embedding.weight"

    def __init__(self, state: Mapping[str, Tensor], columns: int) -> None:
        weight = state[self.NAME]
        wide = torch.cat([weight, weight.new_zeros(len(weight), columns)], 1)
        self.tensors = {**state, self.NAME: wide}
        self.metadata: Mapping[str, str] = {}
        self.spec: Spec = {
            name: TensorSpec(tuple(t.shape), str(t.dtype).removeprefix("torch."))
            for name, t in self.tensors.items()
        }

    def elements(self, name: str, start: int, stop: int) -> Tensor:
        return self.tensors[name].flatten()[start:stop]
