"""What a synthesis makes: prompts, settings, and which samples lie in which shard."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turbodiffusion.errors import CapacityError, UsageError
from turbodiffusion.models.cards import ModelCard
from turbodiffusion.pipeline.request import Request, resolve
from turbodiffusion.sampling.schedule import BASELINE_SIGMA
from turbodiffusion.train.shards import shard_path
from turbodiffusion.weights.detect import describe
from turbodiffusion.weights.header import read_header

PUBLISHED: dict[str, Any] = {"steps": 100, "shift": 3.0, "guidance": 5.0, "solver": "euler"}
"""How the published set was made; an embedded teacher has settings of its own."""

_OVERHEAD = 8192  # bytes of a sample besides its tensors: headers, padding, the prompt


@dataclass(frozen=True)
class Synthesis:
    """What is made, by whom it does not matter.

    Attributes:
        prompts: one for each video; gone through ``repeat`` times.
        request: resolved: size and sampler; its prompt and seed are those of sample 0.
        sigma_max: first noise level. batch: samples of one network call.
    """

    prompts: tuple[str, ...]
    request: Request
    repeat: int = 1
    samples_per_shard: int = 256
    batch: int = 1
    sigma_max: float = BASELINE_SIGMA

    def __post_init__(self) -> None:
        for name in ("repeat", "samples_per_shard", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(
                    "synthesis-setting", f"{name} must be at least 1, not {getattr(self, name)}.",
                    f"Use --{name.replace('_', '-')} 1.",
                )  # fmt: skip

    @property
    def samples(self) -> int:
        return len(self.prompts) * self.repeat

    def prompt(self, number: int) -> str:
        """What sample ``number`` shows."""
        return self.prompts[number % len(self.prompts)]

    def shards(self, rank: int = 0, world: int = 1) -> dict[int, range]:
        """Number of each shard of this process → its samples."""
        size = self.samples_per_shard
        return {
            n: range(n * size, min((n + 1) * size, self.samples))
            for n in range(rank, -(-self.samples // size), world)
        }

    def groups(self, samples: range) -> Iterator[range]:
        """The batches of a shard, the same whatever of it is there already."""
        for start in range(samples.start, samples.stop, self.batch):
            yield range(start, min(start + self.batch, samples.stop))

    def as_json(self) -> dict[str, Any]:
        """What decides about the samples' values, their batches apart."""
        values = {k: v for k, v in asdict(self.request).items() if v is not None and k != "prompt"}
        text = "\n".join(self.prompts)
        return {
            **values, "sigma_max": self.sigma_max, "samples_per_shard": self.samples_per_shard,
            "samples": self.samples,
            "prompts_sha256": hashlib.sha256(text.encode("utf-8")).hexdigest(),
        }  # fmt: skip


def read_prompts(path: Path) -> tuple[str, ...]:
    """One prompt a line; empty lines are none.

    Raises:
        UsageError: the file cannot be read, or holds no prompt.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("prompts-unreadable", f"The prompts file {path} cannot be read: {error}.",
                         "Give a UTF-8 text file.") from error  # fmt: skip
    prompts = tuple(line for line in lines if line)
    if not prompts:
        raise UsageError("prompts-empty", f"{path} holds no prompt.", "Write one a line.")
    return prompts


def baseline_request(request: Request, card: ModelCard) -> Request:
    """``request`` with the defaults of the published set, or of an embedded teacher, filled in.

    Raises:
        UsageError: the model is a student, or makes videos from images.
    """
    if card.task != "t2v":
        raise UsageError(
            "synthesis-image", f"{card.name} makes videos from images, which prompts do not give.",
            "Use a text-to-video model.",
        )  # fmt: skip
    if card.embedded and card.few_step:
        raise UsageError(
            "synthesis-student", f"{card.name} is a distilled student, not a teacher.",
            f"Use --model {card.name}-teacher.",
        )  # fmt: skip
    values = {**asdict(request), "baseline": True}
    if not card.embedded:
        values |= {k: v for k, v in PUBLISHED.items() if values[k] is None}
    return resolve(Request(**values), card)


def require_teacher(file: Path) -> None:
    """Refuse a network whose sparse attention says that it is a student already.

    Raises:
        UsageError: it has the projection of the linear branch.
    """
    if describe(read_header(file)).attention == "sla":
        raise UsageError(
            "synthesis-student",
            f"{file} has sparse attention, as students have; a teacher is dense.",
            "Give the original network, such as Wan2.1's, as --model.",
        )


def require_space(card: ModelCard, plan: Synthesis, folder: Path) -> None:
    """Compare what is left to make, by all processes, with the free space.

    Raises:
        CapacityError: it does not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    r = plan.request
    assert r.frames and r.height and r.width
    elements = card.text.text_len * card.text.dim
    c, t, h, w = card.latent_shape(r.frames, r.height, r.width)
    each = 2 * (elements + c * t * h * w) + _OVERHEAD
    left = sum(len(s) for n, s in plan.shards().items() if not shard_path(folder, n).exists())
    there = sum(path.stat().st_size for path in folder.glob("*.tar.tmp"))
    needed = max(0, left * each - there)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CapacityError(
            "shards-disk",
            f"{left} samples need {needed / 1e9:.3g} GB in {folder}, "
            f"where {free / 1e9:.3g} GB are free.",
            "Free some space, give a folder on another disk, or make fewer samples.",
        )
