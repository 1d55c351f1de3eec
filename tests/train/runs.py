"""Short runs of the real loop: the micro network on latents of 3×8×8, with its trained weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from turbodiffusion.parallel import ranks
from turbodiffusion.train.config import TrainConfig, change
from turbodiffusion.train.stages import attention_of, settings_of

TINY: dict[str, Any] = {
    "card": "micro-teacher", "init": "micro-teacher", "latent_frames": 3, "height": 32, "width": 32,
    "batch": 2, "micro_batch": 1, "steps": 4, "save_every": 2, "log_every": 1, "sample_every": 0,
}  # fmt: skip
SPARSE = {"topk": 0.34}  # one of the three key blocks


def settings(stage: str, out: Path, **changes: Any) -> TrainConfig:
    """A run of ``stage`` that takes a second."""
    config = change(settings_of(stage, "mini"), {**TINY, "out": str(out)})
    if attention_of(config).kind == "sla":
        config = change(config, {"loss": SPARSE})
    if stage == "rcm":  # the second iteration is the critic's, the third both losses'
        config = change(config, {"loss": {"every": 2, "consistency": {"warmup": 1}}})
    if stage == "match":
        same = {"teacher": TINY["init"], "leader": TINY["init"]}
        config = change(config, {**same, "loss": {"every": 2}})
    return change(config, changes)


@contextmanager
def alone() -> Iterator[ranks.Ranks]:
    """A process group of one, as a plain start makes it."""
    try:
        yield ranks.start(torch.device("cpu"))
    finally:
        ranks.leave()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def curve(out: Path, names: tuple[str, ...] = ("loss", "grad_norm", "lr")) -> list[list[float]]:
    """What a run has logged, without the times."""
    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    return [[line["step"], *(line[n] for n in names)] for line in map(json.loads, lines)]
