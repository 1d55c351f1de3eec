"""What `turbodiffusion mini judge` prints: how often a video shows what its caption says.

Every row is measured on clips of known content, seen and held-out combinations apart: the judge on
rendered truth (its own error), the autoencoder's reconstruction, and the teacher.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.mini import world
from turbodiffusion.mini.data import render_clips
from turbodiffusion.mini.export import PACKAGED, file, find_part, update_report
from turbodiffusion.mini.judge import judge, score
from turbodiffusion.mini.metrics import interval
from turbodiffusion.mini.recipe import SizeRecipe
from turbodiffusion.pipeline.load import load
from turbodiffusion.pipeline.pipeline import Pipeline
from turbodiffusion.pipeline.request import Request, resolve

ATTRIBUTES = ("background", "colour", "shape", "motion", "joint")
SPLITS: tuple[world.Split, ...] = ("seen", "held_out")
SEED = 90_000_000
"""Evaluation scenes are numbered from here, far from every training seed."""


@dataclass
class Row:
    """Counts of one row of the table. ``hits[attribute] = [right, judged]``."""

    name: str
    split: str
    objects: int
    hits: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    square: list[float] = field(default_factory=list)
    seconds: float = 0.0
    videos: int = 0
    calls: int = 0

    def add(self, scores: dict[str, bool | None]) -> None:
        """Count one video; an attribute that the caption leaves open is not judged."""
        self.videos += 1
        for name, right in scores.items():
            if right is not None:
                self.hits[name][0] += bool(right)
                self.hits[name][1] += 1

    def as_json(self) -> dict[str, Any]:
        """Plain values: accuracy, 95 % interval and sample count of every attribute."""
        values: dict[str, Any] = {
            "row": self.name, "split": self.split, "objects": self.objects, "videos": self.videos,
            "network_calls": self.calls,
        }  # fmt: skip
        if self.videos:
            values["seconds_per_video"] = round(self.seconds / self.videos, 4)
        for name in ATTRIBUTES:
            right, count = self.hits[name]
            if count:
                low, high = interval(right, count)
                values[name] = {
                    "accuracy": round(right / count, 4),
                    "interval95": [round(low, 4), round(high, 4)],
                    "samples": count,
                }
        if self.square:
            mean = sum(self.square) / len(self.square)
            values["psnr_db"] = round(-10 * torch.log10(torch.tensor(mean)).item(), 2)
        return values


def scenes_of(split: world.Split, objects: int, n: int) -> world.Scenes:
    """The evaluation scenes; the same for every model of every size."""
    seed = SEED + {"seen": 0, "held_out": 1}[split] + 2 * objects
    return world.sample_scenes(n, seed, split=split, two_objects=float(objects == 2))


def prompts_of(scenes: world.Scenes) -> list[str]:
    """The plainest caption of every scene; it names every attribute."""
    return [world.caption(scenes, i, 0) for i in range(len(scenes))]


def truth_row(pipe: Pipeline, split: world.Split, objects: int, n: int, batch: int) -> Row:
    """The judge's own accuracy on rendered clips."""
    row = Row("rendered truth", split, objects)
    for scenes, video in _rendered(pipe, split, objects, n, batch):
        _judge_all(row, scenes, video)
    return row


def reconstruction_row(pipe: Pipeline, split: world.Split, objects: int, n: int, batch: int) -> Row:
    """Clips through the autoencoder and back; PSNR over all pixels in [0, 1]."""
    row = Row("VAE reconstruction", split, objects)
    for scenes, video in _rendered(pipe, split, objects, n, batch):
        start = time.perf_counter()
        out = pipe.reconstruct(video)
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
    pipe: Pipeline, split: world.Split, objects: int, n: int, batch: int
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


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of :meth:`Row.as_json` as aligned text, accuracies in percent with 95 % intervals."""
    header = [
        "row",
        "combinations",
        "objects",
        "videos",
        *ATTRIBUTES,
        "PSNR dB",
        "calls",
        "s/video",
    ]
    lines = [header]
    for row in rows:
        cells = [
            row["row"],
            row["split"].replace("_", "-"),
            str(row["objects"]),
            str(row["videos"]),
        ]
        for name in ATTRIBUTES:
            value = row.get(name)
            if value is None:
                cells.append("–")
                continue
            low, high = value["interval95"]
            cells.append(f"{100 * value['accuracy']:.1f} ({100 * low:.0f}–{100 * high:.0f})")
        cells.append(f"{row['psnr_db']:.1f}" if "psnr_db" in row else "–")
        cells.append(str(row["network_calls"] or "–"))
        seconds = row.get("seconds_per_video")
        cells.append(f"{seconds:.2f}" if seconds else "–")
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def measure(
    pipe: Pipeline, name: str, split: world.Split, objects: int, n: int, batch: int, **settings: Any
) -> Row:
    """One row by its short name: ``truth``, ``vae`` or ``teacher``."""
    if name == "truth":
        return truth_row(pipe, split, objects, n, batch)
    if name == "vae":
        return reconstruction_row(pipe, split, objects, n, batch)
    if name == "teacher":
        return sample_row(pipe, split, objects, n, batch, **settings)
    raise UsageError("mini-row", f"There is no row {name!r}.", "Rows are truth, vae, teacher.")


def record(size: SizeRecipe, folder: Path, result: dict[str, Any]) -> Path:
    """Store a measured table in the report file of ``folder``.

    Each row carries the machine it was measured on. Rows of earlier calls stay unless they are
    measured again or belong to other weights.
    """
    path = file(size, folder, "report")
    old = json.loads(path.read_text("utf-8")) if path.exists() else {}
    kept = {}
    if old.get("quality", {}).get("weights") == result["weights"]:
        kept = {_row_key(row): row for row in old["quality"]["rows"]}
    new = {_row_key(row): {**row, "machine": result["machine"]} for row in result["rows"]}
    quality = {k: v for k, v in result.items() if k != "machine"}
    return update_report(size, folder, quality={**quality, "rows": [*{**kept, **new}.values()]})


def _row_key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["row"], row["split"], row["objects"], row["network_calls"]


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
