"""What `turbodiffusion mini judge` prints: how often a video shows what its caption says.

Every row is measured on clips of known content, seen and held-out combinations apart: the judge on
rendered truth (its own error), the autoencoder's reconstruction, and the teacher.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.mini import world
from turbodiffusion.mini.data import render_clips
from turbodiffusion.mini.export import PACKAGED, find_part
from turbodiffusion.mini.judge import judge, score
from turbodiffusion.mini.recipe import SizeRecipe
from turbodiffusion.mini.table import Row
from turbodiffusion.models.cards import ModelCard
from turbodiffusion.models.vae import WanVAE
from turbodiffusion.pipeline.identity import WeightIdentity
from turbodiffusion.pipeline.load import load, pick_device
from turbodiffusion.pipeline.pipeline import Pipeline
from turbodiffusion.pipeline.request import Request, resolve
from turbodiffusion.weights.load import load_vae

SPLITS: tuple[world.Split, ...] = ("seen", "held_out")
SEED = 90_000_000
"""Evaluation scenes are numbered from here, far from every training seed."""


@dataclass(frozen=True)
class Autoencoder:
    """As much of a pipeline as rows without sampling need, so that a VAE can be judged alone."""

    card: ModelCard
    vae: WanVAE
    device: torch.device
    identity: WeightIdentity

    @torch.inference_mode()
    def reconstruct(self, video_BCFHW: Tensor) -> Tensor:
        """Through the autoencoder and back, float32 in the range it produces."""
        video = video_BCFHW.to(self.device, self.vae.dtype)
        return self.vae.decode(self.vae.encode(video)).float()


Subject = Pipeline | Autoencoder


def scenes_of(split: world.Split, objects: int, n: int) -> world.Scenes:
    """The evaluation scenes; the same for every model of every size."""
    seed = SEED + {"seen": 0, "held_out": 1}[split] + 2 * objects
    return world.sample_scenes(n, seed, split=split, two_objects=float(objects == 2))


def prompts_of(scenes: world.Scenes) -> list[str]:
    """The plainest caption of every scene; it names every attribute."""
    return [world.caption(scenes, i, 0) for i in range(len(scenes))]


def truth_row(pipe: Subject, split: world.Split, objects: int, n: int, batch: int) -> Row:
    """The judge's own accuracy on rendered clips."""
    row = Row("rendered truth", split, objects)
    for scenes, video in _rendered(pipe, split, objects, n, batch):
        _judge_all(row, scenes, video)
    return row


def reconstruction_row(pipe: Subject, split: world.Split, objects: int, n: int, batch: int) -> Row:
    """Clips through the autoencoder and back; PSNR over all pixels in [0, 1]."""
    row = Row("VAE reconstruction", split, objects)
    for scenes, video in _rendered(pipe, split, objects, n, batch):
        start = time.perf_counter()
        out = pipe.reconstruct(video).clamp(-1, 1)  # as it is shown
        row.seconds += time.perf_counter() - start
        row.square += ((out - video).square().mean((1, 2, 3, 4)) / 4).tolist()
        _judge_all(row, scenes, out)
    return row


def sample_row(
    pipe: Pipeline, split: world.Split, objects: int, n: int, batch: int, name: str = "teacher",
    on_batch: Callable[[int], None] | None = None, **settings: Any,
) -> Row:  # fmt: skip
    """Videos made from captions with the pipeline's sampler; ``settings`` go to the request."""
    scenes = scenes_of(split, objects, n)
    prompts = prompts_of(scenes)
    row = Row(name, split, objects)
    for first in range(0, n, batch):
        part = scenes[first : first + batch]
        start = time.perf_counter()
        video, row.calls = sample(pipe, prompts[first : first + batch], SEED + first, **settings)
        row.seconds += time.perf_counter() - start
        _judge_all(row, part, video)
        if on_batch:
            on_batch(len(part))
    return row


def sample(pipe: Pipeline, prompts: list[str], seed: int, **settings: Any) -> tuple[Tensor, int]:
    """Videos of the prompts, uint8 (B, F, H, W, 3), and the network calls that each one took.

    Prompt ``i`` starts from the noise of ``seed + i``; ``settings`` go to the request.
    """
    requests = [
        resolve(Request(prompt, seed=seed + i, **settings), pipe.card)
        for i, prompt in enumerate(prompts)
    ]
    context = pipe.encode_prompts(prompts)
    negative = pipe.encode_prompts([""]) if requests[0].baseline else None
    latents = pipe.denoise(requests, context, negative)
    return torch.cat(list(pipe.decode(latents)), 1), _calls(requests[0])


def _calls(request: Request) -> int:
    assert request.steps is not None
    return request.steps * (2 if request.baseline and request.guidance != 1.0 else 1)


def _rendered(
    pipe: Subject, split: world.Split, objects: int, n: int, batch: int
) -> Iterable[tuple[world.Scenes, Tensor]]:
    card = pipe.card
    scenes = scenes_of(split, objects, n)
    for first in range(0, n, batch):
        part = scenes[first : first + batch]
        yield part, render_clips(part, card.frames, card.height, pipe.device)


def _judge_all(row: Row, scenes: world.Scenes, video: Tensor) -> None:
    """Judge a batch: (B, 3, F, H, W) in [−1, 1] or uint8 (B, F, H, W, 3)."""
    if video.dtype != torch.uint8:
        video = ((video.float().clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 4, 1)
    for i, clip in enumerate(video.cpu()):
        row.add(score(judge(clip), world.expected(scenes, i)))


ROWS = ("truth", "vae", "teacher")


def measure(
    pipe: Subject, name: str, split: world.Split, objects: int, n: int, batch: int, **settings: Any
) -> Row:
    """One row by its short name, one of ``ROWS``."""
    if name == "truth":
        return truth_row(pipe, split, objects, n, batch)
    if name == "vae":
        return reconstruction_row(pipe, split, objects, n, batch)
    if name == "teacher" and isinstance(pipe, Pipeline):
        return sample_row(pipe, split, objects, n, batch, **settings)
    raise UsageError(
        "mini-row",
        f"There is no row {name!r} of {pipe.card.name} with the weights that are loaded.",
        f"Rows are {', '.join(ROWS)}; the last needs the whole model.",
    )


def open_pipeline(size: SizeRecipe, folder: Path | None, device: str | None) -> Pipeline:
    """The embedded model from ``folder``, or the packaged one.

    Built from its parts rather than by name, so that weights of an unfinished training run in any
    folder can be judged.
    """
    place = folder or PACKAGED
    return load(
        find_part(size, place, "t2v_teacher"),
        vae=find_part(size, place, "vae"),
        text_encoder=find_part(size, place, "text"),
        tokenizer=find_part(size, place, "tokenizer"),
        device=device,
    )


def open_autoencoder(size: SizeRecipe, folder: Path | None, device: str | None) -> Autoencoder:
    """The autoencoder alone, from ``folder`` or packaged, for the rows that sample nothing."""
    path, target = find_part(size, folder or PACKAGED, "vae"), pick_device(device)
    # The precisions of the whole pipeline, see pipeline.load.
    dtype = torch.float32 if target.type == "cpu" else torch.bfloat16
    vae = load_vae(path, size.card.vae, device=target, dtype=dtype)
    return Autoencoder(size.card, vae, target, WeightIdentity({"vae": path}))
