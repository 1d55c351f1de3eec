"""Samples of a teacher as tar shards: what students are trained on where no videos are.

Shard ``s`` is made by process ``s mod world``, which needs no word from the others. Sample ``i``
shows prompt ``i mod prompts`` and starts from noise of seed ``seed + i``, so it does not depend on
what is made beside it. Samples are appended as they finish; a run that was killed goes on behind
the last one, in the same batches, to the same bytes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.errors import CapacityError, UsageError
from turbodiffusion.models.text_encoder import Tokenizer
from turbodiffusion.pipeline.pipeline import Pipeline
from turbodiffusion.pipeline.request import NEGATIVE as DEFAULT_NEGATIVE
from turbodiffusion.sampling.flow import Solver, sample_flow
from turbodiffusion.sampling.noise import draw_noise, make_generators
from turbodiffusion.train.progress import duration
from turbodiffusion.train.sharded import NEGATIVE
from turbodiffusion.train.shards import ShardWriter, saved_bytes, shard_path
from turbodiffusion.train.synthesis import Synthesis
from turbodiffusion.weights.find import Files
from turbodiffusion.weights.load import load_text_encoder

SETTINGS = "synthesis.json"
"""Beside the shards: what they were made with."""


def synthesize(
    pipe: Pipeline, plan: Synthesis, folder: Path, *, rank: int = 0, world: int = 1,
    quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Make this process's shards, or the rest of them; returns a report.

    Raises:
        UsageError: the folder holds shards of other settings.
        CapacityError: the disk is full; what was made before is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _same_settings(folder, {"model": pipe.card.name, **plan.as_json()})
    todo = {
        number: samples
        for number, samples in plan.shards(rank, world).items()
        if not shard_path(folder, number).exists()
    }
    progress = _Progress(sum(map(len, todo.values())), quiet)
    negative = _encode(pipe, plan.request.negative or "")
    _write_whole(folder / NEGATIVE, saved_bytes(negative))
    for number, samples in todo.items():
        writer = ShardWriter(folder, number)
        progress.skip(len(writer.done))
        groups = [
            group for group in plan.groups(samples) if any(n not in writer.done for n in group)
        ]
        # All of a shard's at once: the text encoder and the network may take turns on the device.
        texts = {plan.prompt(n) for group in groups for n in group}
        embeds = {text: _encode(pipe, text) for text in sorted(texts)}
        for group in groups:
            prompts = [plan.prompt(n) for n in group]
            context = torch.stack([embeds[text] for text in prompts])
            latents = _sample(pipe, plan, group, context, negative)
            for n, latent, text in zip(group, latents, prompts, strict=True):
                if n not in writer.done:
                    writer.add(n, latent, embeds[text], text)
                    progress.tick()
        progress.note(f"{writer.finish().name}: {len(samples)} samples")
    return {"folder": str(folder), "samples": progress.made, "seconds": round(progress.seconds, 1)}


@torch.no_grad()
def write_negative(files: Files, text: str | None, folder: Path, device: torch.device) -> Path:
    """Store the embedding of the negative prompt alone, for shards that came without one.

    Args:
        files: of the teacher, of which only the text encoder is loaded.
        text: None: the negative prompt that the teacher's sampler has by default.
    """
    card = files.card
    if text is None:
        text = "" if card.embedded else DEFAULT_NEGATIVE
    dtype = torch.float32 if card.embedded and device.type == "cpu" else None  # as pipelines do
    encoder = load_text_encoder(files.text_encoder, card.text, device, dtype)
    ids, mask = Tokenizer.from_file(files.tokenizer, card.text.text_len)([text])
    embed = encoder.encode(ids.to(device), mask.to(device))[0]
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(folder / NEGATIVE, saved_bytes(embed))
    return folder / NEGATIVE


@torch.no_grad()
def _encode(pipe: Pipeline, text: str) -> Tensor:
    """(S, D) on the CPU; alone, since a batch would round differently."""
    return pipe.encode_prompts([text])[0].cpu()


@torch.no_grad()
def _sample(
    pipe: Pipeline, plan: Synthesis, group: range, context_BSD: Tensor, negative_SD: Tensor
) -> Tensor:
    """Latents (B, C, T, H, W) of the samples ``group``, on the CPU."""
    r, dit = plan.request, pipe.any_expert
    assert r.frames and r.height and r.width and r.steps and r.shift and r.guidance is not None
    shape = pipe.card.latent_shape(r.frames, r.height, r.width)
    generators = [g for n in group for g in make_generators(r.seed + n, 1)]
    noise = draw_noise((len(group), *shape), generators).to(pipe.device)
    pipe.residency.use(dit)
    context = context_BSD.to(pipe.device, pipe.dit_dtype)
    negative = negative_SD.to(context).expand_as(context)
    keys = {} if pipe.residency.streams(dit) else {  # the prompts are the same in every step
        "cond": dit.text_kv(context), "uncond": dit.text_kv(negative),
    }  # fmt: skip

    def cond(x: Tensor, t: Tensor, expert: str) -> Tensor:
        return dit(x, t, None, text_kv=keys["cond"]) if keys else dit(x, t, context)

    def uncond(x: Tensor, t: Tensor, expert: str) -> Tensor:
        return dit(x, t, None, text_kv=keys["uncond"]) if keys else dit(x, t, negative)

    solver: Solver = "unipc" if r.solver == "unipc" else "euler"
    return sample_flow(
        cond, uncond, noise, steps=r.steps, shift=r.shift, guidance=r.guidance, solver=solver,
        convention="rcm", sigma_max=plan.sigma_max, model_dtype=pipe.dit_dtype,
    ).cpu()  # fmt: skip


def _same_settings(folder: Path, values: dict[str, Any]) -> None:
    """Store what the shards are made with, or compare with what is stored."""
    path = folder / SETTINGS
    values = json.loads(json.dumps(values))
    try:
        stored = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UsageError(
            "synthesis-settings", f"{path} cannot be read: {error}.",
            "Remove it if the shards beside it were made with these settings.",
        ) from error  # fmt: skip
    wrong = [name for name in values if stored and stored.get(name) != values[name]]
    if wrong:
        raise UsageError(
            "synthesis-settings",
            f"{folder} holds shards with {wrong[0]} {stored.get(wrong[0])!r}, "
            f"not {values[wrong[0]]!r}.",
            "Give the settings they were made with, or another folder.",
        )
    _write_whole(path, (json.dumps(values, indent=1) + "\n").encode("utf-8"))


def _write_whole(path: Path, data: bytes) -> None:
    """All processes write the same; each has a temporary file of its own."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CapacityError(
            "shards-disk", f"{path} could not be written: {error}.",
            "Free some space; the same command goes on behind the last complete sample.",
        ) from error  # fmt: skip


class _Progress:
    """Samples made, their speed, and the time left, on stderr."""

    def __init__(self, left: int, quiet: bool) -> None:
        self.left, self.made, self.quiet = left, 0, quiet
        self.live = sys.stderr.isatty()
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def skip(self, count: int) -> None:
        """``count`` samples are there already."""
        self.left -= count

    def tick(self) -> None:
        """One sample is on the disk."""
        self.made, self.left = self.made + 1, self.left - 1
        if self.live and not self.quiet:
            print(f"\r\033[K{self._speed()}", end="", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            start = "\r\033[K" if self.live else ""
            print(f"{start}{text}  ({self._speed()})", file=sys.stderr, flush=True)

    def _speed(self) -> str:
        rate = self.made / max(self.seconds, 1e-9)
        left = duration(self.left / rate) if rate else "?"
        return f"{self.made} made, {rate:.3g} samples/s, {left} left"


def processes() -> tuple[int, int]:
    """(rank, world) that ``torchrun`` announces; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
