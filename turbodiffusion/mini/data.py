"""Training data of the embedded models: rendered on the fly, never stored.

Clips come from :mod:`turbodiffusion.mini.world`; the autoencoder sees crops around edges, the
teacher a pool of encoded clips whose oldest entries are replaced all the time.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.mini import world
from turbodiffusion.mini.recipe import Stage, TeacherRecipe, VAERecipe
from turbodiffusion.models.text_encoder import Tokenizer
from turbodiffusion.models.vae import WanVAE

CHUNK_PIXELS = 8 << 20
CAPTIONS_PER_CLIP = 4


def step_seed(stage: Stage, step: int, rank: int) -> int:
    """Seed of all that is random in one step of one process (up to 64 of them)."""
    return stage.seed * 1_000_003 + step * 64 + rank


def pool_seed(stage: Stage, rank: int, frames: int) -> int:
    """First scene seed of a process's pool of clips of ``frames`` frames.

    Each process has a million numbers of its own, far above those of :func:`step_seed`.
    """
    return stage.seed * 10_000_019 + rank * 1_000_003 + frames


def chunk_of(frames: int, size: int) -> int:
    """Clips that are rendered and encoded together: as many as fit ``CHUNK_PIXELS``."""
    return max(1, min(128, CHUNK_PIXELS // (frames * size * size)))


def clips(n: int, seed: int, frames: int, size: int, device: torch.device) -> Tensor:
    """``n`` training clips (n, 3, frames, size, size) in [−1, 1], float32 on ``device``."""
    return render_clips(world.sample_scenes(n, seed, split="train"), frames, size, device)


def render_clips(scenes: world.Scenes, frames: int, size: int, device: torch.device) -> Tensor:
    """The scenes as network input: (n, 3, frames, size, size) in [−1, 1]."""
    scenes = scenes.to(device)
    chunk = chunk_of(frames, size)
    parts = [
        world.render(scenes[i : i + chunk], frames, size) for i in range(0, len(scenes), chunk)
    ]
    return torch.cat(parts).permute(0, 4, 1, 2, 3) * 2 - 1


def crop_clips(
    video_BCFHW: Tensor, crop: tuple[int, int], count: int, edge_share: float, seed: int
) -> Tensor:
    """``count`` crops of each clip, (B·count, C, crop frames, crop side, crop side).

    A share of the crops is centred on a pixel drawn by the strength of the image gradient in the
    middle frame, since objects cover little of a clip; the rest lies anywhere.
    """
    frames, h, w = video_BCFHW.shape[2:]
    n_frames, side = min(crop[0], frames), min(crop[1], h, w)
    rng = random.Random(seed)
    starts = [rng.randint(0, frames - n_frames) for _ in video_BCFHW]
    middle = torch.stack(
        [video[:, s + n_frames // 2] for video, s in zip(video_BCFHW, starts, strict=True)]
    )
    grad = (middle[..., 1:, 1:] - middle[..., :-1, 1:]).abs() + (
        middle[..., 1:, 1:] - middle[..., 1:, :-1]
    ).abs()
    weight = grad.sum(1).flatten(1).clamp_min(0.05) - 0.05 + 1e-6
    generator = torch.Generator(device=weight.device).manual_seed(seed)
    picks = torch.multinomial(weight, count, replacement=True, generator=generator).tolist()
    out = []
    for i, start in enumerate(starts):
        for pick in picks[i]:
            if rng.random() < edge_share:
                y, x = divmod(pick, w - 1)
                y, x = y - side // 2, x - side // 2
            else:
                y, x = rng.randint(0, h - side), rng.randint(0, w - side)
            y, x = min(max(y, 0), h - side), min(max(x, 0), w - side)
            out.append(video_BCFHW[i, :, start : start + n_frames, y : y + side, x : x + side])
    return torch.stack(out)


def vae_batch(
    recipe: VAERecipe, step: int, rank: int, frames: int, size: int, device: torch.device
) -> Tensor:
    """The batch of a training step; the same for the same recipe, step and process."""
    seed = step_seed(recipe, step, rank)
    crop = (min(recipe.crop[0], frames), min(recipe.crop[1], size))
    if recipe.full_every and step % recipe.full_every == recipe.full_every - 1:
        return clips(recipe.full_batch, seed, frames, size, device)
    if recipe.still_every and step % recipe.still_every == recipe.still_every - 1:
        crop = (5, crop[1])
    if crop == (frames, size):
        return clips(recipe.batch, seed, frames, size, device)
    count = recipe.crops_per_clip
    video = clips(max(1, recipe.batch // count), seed, frames, size, device)
    return crop_clips(video, crop, count, recipe.edge_share, seed)


class LatentPool:
    """A ring of encoded clips with tokenised captions, on the training device.

    Args:
        recipe: sizes of the pool and of its refresh.
        vae: frozen autoencoder on ``device``; clips are encoded in its precision.
        tokenizer: of the embedded text encoder.
        frames, size: of the rendered clips.
        seed: start of the clip numbering; entry ``k`` ever added has seed ``seed + k``.
    """

    def __init__(
        self, recipe: TeacherRecipe, vae: WanVAE, tokenizer: Tokenizer,
        frames: int, size: int, device: torch.device, seed: int,
    ) -> None:  # fmt: skip
        self.recipe, self.vae, self.tokenizer = recipe, vae, tokenizer
        self.frames, self.size, self.device = frames, size, device
        self.seed = seed
        self.chunk = min(chunk_of(frames, size), recipe.pool)
        self.added = 0
        self.debt = 0.0
        self.latents: Tensor | None = None
        self.ids: Tensor | None = None
        self.masks: Tensor | None = None
        self.dtype = next(vae.parameters()).dtype

    def __len__(self) -> int:
        return min(self.added, self.recipe.pool)

    def fill(self) -> None:
        """The entries that training starts with."""
        self.add(self.recipe.first_pool)

    @torch.no_grad()
    def add(self, n: int) -> None:
        """Render, encode and tokenise ``n`` clips over the oldest entries."""
        for first in range(0, n, self.chunk):
            self._add_chunk(min(self.chunk, n - first))

    def state_dict(self) -> dict[str, Any]:
        """Numbers from which :meth:`load_state_dict` renders the same entries again."""
        return {"frames": self.frames, "added": self.added, "debt": self.debt}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the entries of a saved pool again, in the chunks they were made in.

        Clips that newer ones have replaced are left out, so this takes at most the time of
        ``recipe.pool`` clips.
        """
        first, total = self.recipe.first_pool, state["added"]
        starts = [*range(0, first, self.chunk), *range(first, total, self.chunk)]
        for start in starts:
            n = min(self.chunk, first - start) if start < first else self.chunk
            self.added = start
            if start + n > total - self.recipe.pool:
                self._add_chunk(n)
        self.added, self.debt = total, state["debt"]

    def _add_chunk(self, n: int) -> None:
        seed = self.seed + self.added
        scenes = world.sample_scenes(n, seed, split="train", two_objects=self.recipe.two_objects)
        latent = self.encode(
            render_clips(scenes, self.frames, self.size, self.device).to(self.dtype)
        )
        generator = torch.Generator().manual_seed(seed)
        texts = [self.write(scenes, generator) for _ in range(CAPTIONS_PER_CLIP)]
        tokens = [self.tokenizer(list(group)) for group in texts]
        if self.latents is None or self.ids is None or self.masks is None:
            room = self.recipe.pool
            shape = (room, CAPTIONS_PER_CLIP, tokens[0][0].shape[1])
            self.latents = torch.empty(
                (room, *latent.shape[1:]), dtype=torch.bfloat16, device=self.device
            )
            self.ids = torch.zeros(shape, dtype=torch.int64, device=self.device)
            self.masks = torch.zeros(shape, dtype=torch.int64, device=self.device)
        slots = torch.arange(self.added, self.added + n, device=self.device) % self.recipe.pool
        self.latents[slots] = latent.to(torch.bfloat16)
        self.ids[slots] = torch.stack([ids for ids, _ in tokens], 1).to(self.device)
        self.masks[slots] = torch.stack([mask for _, mask in tokens], 1).to(self.device)
        self.added += n

    def encode(self, video_BCFHW: Tensor) -> Tensor:
        """What is kept of the clips: their latents (B, C, T, H, W)."""
        return self.vae.encode_parallel(video_BCFHW)

    def write(self, scenes: world.Scenes, generator: torch.Generator) -> list[str]:
        """One caption for each scene."""
        return world.captions(scenes, generator)

    def refresh(self) -> None:
        """Pay this step's share of new clips, in whole chunks."""
        self.debt += self.recipe.refresh
        while self.debt >= self.chunk:
            self.add(self.chunk)
            self.debt -= self.chunk

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(latents float32 (n, C, T, H, W), ids (n, S), masks (n, S)) of random entries.

        The generator belongs to the pool's device: numbers drawn on the host would have to be
        copied, and every copy waits until the device has done all that was asked before.
        """
        assert self.latents is not None and self.ids is not None and self.masks is not None
        pick = torch.randint(len(self), (n,), generator=generator, device=self.device)
        variant = torch.randint(CAPTIONS_PER_CLIP, (n,), generator=generator, device=self.device)
        return self.latents[pick].float(), self.ids[pick, variant], self.masks[pick, variant]
