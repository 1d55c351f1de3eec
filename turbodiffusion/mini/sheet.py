"""A picture of what the embedded model makes of prompts it was never trained on.

Prompts and noise follow from the fixed seed of :mod:`turbodiffusion.mini.evaluate`, so nothing is
picked by eye, and the ticks and crosses are the judge's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turbodiffusion.media.sheet import contact_sheet
from turbodiffusion.mini import evaluate, world
from turbodiffusion.mini.judge import judge, score
from turbodiffusion.pipeline.pipeline import Pipeline

MARKED = ("background", "colour", "shape", "motion")


def draw_sheet(
    pipe: Pipeline, path: Path, samples: int, *, objects: int = 1, batch: int = 8,
    on_batch: Callable[[int], None] | None = None, **settings: Any,
) -> tuple[Path, Counter[str]]:  # fmt: skip
    """Make ``samples`` videos of held-out combinations and draw them, one a row.

    Args:
        path: ``.png`` or ``.jpg``.
        objects: 1 or 2 in every prompt.
        batch: videos made together; the result does not depend on it.
        on_batch: told the number of videos as they are finished.
        settings: of the sampler, such as ``steps`` and ``guidance``; the card's by default.

    Returns:
        The path, and how many videos show each attribute right.
    """
    scenes = evaluate.scenes_of("held_out", objects, samples)
    prompts = evaluate.prompts_of(scenes)
    videos, marks, calls = [], [], 0
    for first in range(0, samples, batch):
        part = prompts[first : first + batch]
        made, calls = evaluate.sample(pipe, part, evaluate.SEED + first, **settings)
        for i, video in enumerate(made):
            scores = score(judge(video), world.expected(scenes, first + i))
            videos.append(video.numpy())
            marks.append({name: scores[name] for name in MARKED})
        if on_batch:
            on_batch(len(part))
    right = Counter({name: sum(bool(m[name]) for m in marks) for name in MARKED})
    title = f"{pipe.card.name}, {calls} network calls, combinations never seen in training"
    return contact_sheet(videos, prompts, path, marks=marks, title=title), right
