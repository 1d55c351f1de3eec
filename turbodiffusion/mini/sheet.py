"""Pictures of what the embedded model makes of prompts it was never trained on.

Prompts and noise follow from the fixed seed of :mod:`turbodiffusion.mini.prompts`, so nothing is
picked by eye, and the ticks and crosses are the judge's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from turbodiffusion.media.sheet import contact_sheet
from turbodiffusion.mini import evaluate, world
from turbodiffusion.mini.attributes import Expected
from turbodiffusion.mini.judge import judge, score
from turbodiffusion.mini.metrics.shares import interval
from turbodiffusion.mini.prompts import SEED, prompts_of, scenes_of
from turbodiffusion.mini.rows import BY_NAME
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
    scenes = scenes_of("held_out", objects, samples)
    prompts = prompts_of(scenes)
    videos, marks, calls = [], [], 0
    for first in range(0, samples, batch):
        part = prompts[first : first + batch]
        made, calls = evaluate.sample(pipe, part, SEED + first, **settings)
        for i, video in enumerate(made):
            videos.append(video.numpy())
            marks.append(_marks(videos[-1], world.expected(scenes, first + i)))
        if on_batch:
            on_batch(len(part))
    right = Counter({name: sum(bool(m[name]) for m in marks) for name in MARKED})
    title = f"{pipe.card.name}, {calls} network calls, combinations never seen in training"
    return contact_sheet(videos, prompts, path, marks=marks, title=title), right


def draw_rows(
    examples: Mapping[str, Mapping[str, np.ndarray]], result: Mapping[str, Any], path: Path
) -> Path:
    """Draw the same held-out prompt, from the same noise, through all rows of an evaluation.

    Each row's caption has its calls, its joint accuracy with interval, and the number of videos.

    Args:
        examples: prompt → name of the row → clip, as an evaluation keeps them.
        result: the plain values of an evaluation, of more prompts than are drawn.
    """
    videos, captions, marks = [], [], []
    for prompt, clips in examples.items():
        expected = world.parse(prompt)
        assert expected is not None
        for number, (name, clip) in enumerate(clips.items()):
            said = _caption(BY_NAME[name].shown, result["rows"])
            captions.append(f"“{prompt}” – {said}" if number == 0 else said)
            videos.append(clip)
            marks.append(_marks(clip, expected))
    title = f"{result['model']}: one prompt, one noise, all rows"
    return contact_sheet(videos, captions, path, marks=marks, title=title)


def _marks(clip: np.ndarray, expected: Expected) -> dict[str, bool | None]:
    scores = score(judge(clip), expected)
    return {name: scores[name] for name in MARKED}


def _caption(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    mine = [row for row in rows if row["row"] == name and "joint" in row]
    count = sum(row["joint"]["samples"] for row in mine)
    right = sum(round(row["joint"]["accuracy"] * row["joint"]["samples"]) for row in mine)
    if not count:
        return name
    low, high = interval(right, count)
    calls = f", {mine[0]['network_calls']} calls" if mine[0]["network_calls"] else ""
    share = f"{100 * right / count:.1f} % right ({100 * low:.0f}–{100 * high:.0f})"
    return f"{name}{calls}: {share} of {count}"
