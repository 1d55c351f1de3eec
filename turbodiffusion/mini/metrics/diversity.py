"""Whether different noise gives different videos of the same prompt.

A caption leaves open where an object starts. Several videos are made of each of some prompts, and
the spread of the starting points is compared with that of the world's own clips of the same motion.
A sampler that has collapsed gives nearly the same video for any noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from turbodiffusion.mini import world

SEEDS = 8
"""Videos of each prompt."""
REAL_SCENES = 20_000

Point = tuple[float, float]


@lru_cache(maxsize=1)
def real_variances() -> dict[str, float]:
    """Motion → variance of x plus that of y of where an object starts in the world.

    With one object the start depends on nothing else that a caption names.
    """
    scenes = world.sample_scenes(REAL_SCENES, 95_000_000, split="all", two_objects=0.0)
    x, y, _ = world.paths(scenes, torch.zeros(1))
    motion = scenes.motion[:, 0]
    return {
        name: float(x[motion == i, 0, 0].var() + y[motion == i, 0, 0].var())
        for i, name in enumerate(world.MOTIONS)
    }


def diversity(starts: Sequence[tuple[str, Sequence[Point]]]) -> float | None:
    """Spread of starting points within a prompt ÷ the world's spread; 1 is as diverse as real.

    Args:
        starts: for each prompt its motion and where the object started in each of its videos.

    Returns:
        Root of the ratio of mean variances; None where no prompt has two videos.
    """
    made, real = 0.0, 0.0
    for motion, points in starts:
        if len(points) < 2:
            continue
        made += float(torch.tensor(points).var(dim=0).sum())
        real += real_variances()[motion]
    return math.sqrt(made / real) if real else None
