"""Pictures of what the embedded model makes of prompts it was never trained on.

Prompts and noise follow from the fixed seed of :mod:`turbodiffusion.mini.prompts`, so nothing is
picked by eye, and the ticks and crosses are the judge's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from turbodiffusion.media.sheet import contact_sheet
from turbodiffusion.mini import evaluate, world
from turbodiffusion.mini.attributes import Expected
from turbodiffusion.mini.evaluate import Evaluation
from turbodiffusion.mini.judge import judge, score
from turbodiffusion.mini.metrics.shares import interval
from turbodiffusion.mini.prompts import SEED, prompts_of, scenes_of
from turbodiffusion.mini.tally import RowTally
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


def draw_rows(evaluation: Evaluation, path: Path) -> Path:
    """Draw the same held-out prompt, from the same noise, through all rows of an evaluation.

    Each row's caption has its calls, its joint accuracy with interval, and the number of videos.
    """
    videos, captions, marks = [], [], []
    for prompt, clips in evaluation.examples.items():
        expected = world.parse(prompt)
        assert expected is not None
        for number, (name, clip) in enumerate(clips.items()):
            said = _caption(evaluation.tallies[name])
            captions.append(f"“{prompt}” – {said}" if number == 0 else said)
            videos.append(clip)
            marks.append(_marks(clip, expected))
    title = f"{evaluation.networks.card.name.removesuffix('-teacher')}: one prompt, all rows"
    return contact_sheet(videos, captions, path, marks=marks, title=title)


def _marks(clip: np.ndarray, expected: Expected) -> dict[str, bool | None]:
    scores = score(judge(clip), expected)
    return {name: scores[name] for name in MARKED}


def _caption(tally: RowTally) -> str:
    joint = [mark for group in tally.groups.values() for mark in group.marks("joint")]
    low, high = interval(sum(joint), len(joint))
    calls = f", {tally.calls} calls" if tally.calls else ""
    return (
        f"{tally.name}{calls}: {100 * sum(joint) / len(joint):.1f} % right "
        f"({100 * low:.0f}–{100 * high:.0f}) of {len(joint)}"
    )
