"""The whole of `turbodiffusion mini judge`: from its settings to the result that is printed.

Also what ends `mini train all`, so that a recipe is never finished without its table.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbodiffusion.mini import report
from turbodiffusion.mini.evaluate import (
    Evaluation,
    Progress,
    real_clips,
    require_prompts_of_the_world,
)
from turbodiffusion.mini.networks import Networks
from turbodiffusion.mini.observe import WORTH_PROCESSES, Judges, usable_cores
from turbodiffusion.mini.prompts import Batch, given_batches, repeated_batches, world_batches
from turbodiffusion.mini.recipe import SizeRecipe
from turbodiffusion.mini.rows import Row, choose

REAL_CLIPS = {"cpu": 256, "cuda": 4096}
BATCH = {"cpu": 8, "cuda": 128}
REPEATED = 64
"""One prompt is made from several noises for this many videos of a row."""


@dataclass(frozen=True)
class Options:
    """What is measured; None leaves a number to the device.

    Attributes:
        folder: where weights are looked for before the package.
        rows: names of rows, ``available`` or ``all``.
        samples: prompts of each kind; kinds are seen and held-out, times ``objects``.
        prompts: texts that are judged instead of the world's.
        batch: prompts made together. real: rendered clips that distributions are compared with.
        repeated: prompts made from several noises. workers: judging processes.
        minutes: start no further batch after this long.
        topk: of the sparse rows. steps, guidance: of the rows with the card's own sampler.
    """

    folder: Path | None = None
    device: str | None = None
    rows: Sequence[str] = ("available",)
    samples: int = 32
    objects: Sequence[int] = (1,)
    prompts: Sequence[str] | None = None
    batch: int | None = None
    real: int | None = None
    repeated: int | None = None
    workers: int | None = None
    minutes: float | None = None
    topk: float | None = None
    steps: int | None = None
    guidance: float | None = None


def measure_quality(
    size: SizeRecipe, options: Options, progress: Progress
) -> tuple[dict[str, Any], Evaluation]:
    """The result as plain values, and the evaluation with its example clips.

    Raises:
        UsageError: a row, prompt or device that cannot be used. WeightsError: a file is missing.
    """
    started = time.monotonic()
    rows: list[Row] = choose(options.rows, size, options.folder)
    if options.prompts is not None and "available" in options.rows:
        rows = [row for row in rows if row.part]
    networks = Networks(size, options.folder, options.device, options.topk)
    kind = networks.device.type
    batch = options.batch or BATCH[kind]
    left: list[tuple[str, str]] = []
    if options.prompts is not None:
        require_prompts_of_the_world(rows)
        batches, left = given_batches(options.prompts, batch)
    else:
        batches = world_batches(options.objects, options.samples, batch)
    videos = sum(map(len, batches))
    repeated = options.repeated
    if repeated is None:
        repeated = 0 if options.prompts is not None else videos // REPEATED
    for row in rows:
        if row.part:
            networks.pipeline(row)  # every file is read before the first long batch
    total = videos * len(rows)
    workers = options.workers or (usable_cores() if total >= WORTH_PROCESSES else 1)
    progress(f"{len(rows)} rows on {videos} prompts, {networks.device}, {workers} judge(s)")
    deadline = started + 60 * options.minutes if options.minutes else None
    with Judges(workers) as judges:
        evaluation = Evaluation(
            networks, rows, judges, options.steps, options.guidance, progress=progress
        )
        wanted = REAL_CLIPS[kind] if options.real is None else options.real
        real = real_clips(networks, wanted, batches) if wanted else None
        extra = repeated_batches(repeated, batch) if repeated else []
        order = _shuffle_in(batches, extra)
        done = evaluation.run(order, deadline)
    progress(f"done in {time.monotonic() - started:.0f} s, {judges.waited:.0f} s of it waiting for "
             "judges")  # fmt: skip
    result = report.as_json(
        evaluation, real, batch=batch, repeated_prompts=repeated, complete=done == len(order),
        seconds=round(time.monotonic() - started, 1), waited=round(judges.waited, 1),
        topk=options.topk, steps=options.steps, guidance=options.guidance,
    )  # fmt: skip
    if options.prompts is not None:
        result["not_judged"] = [{"prompt": text, "reason": why} for text, why in left]
    return result, evaluation


def _shuffle_in(batches: list[Batch], extra: list[Batch]) -> list[Batch]:
    """``extra`` spread among ``batches``, behind the first one, so that a cut run has some."""
    order = list(batches)
    for number, one in enumerate(extra):
        place = 1 + (number + 1) * len(batches) // (len(extra) + 1) + number
        order.insert(place, one)
    return order
