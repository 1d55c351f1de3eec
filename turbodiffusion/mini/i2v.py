"""Image to video: two experts made from the text-to-video networks of the same size.

===============  =====================================================  =======================
stage            what happens                                           writes ``<size>_i2v_…``
===============  =====================================================  =======================
``i2v``          the teacher learns to see an image at all noise        ``start``, ``base``,
                 levels, then once more at high and once at low ones    ``teacher_high``, ``…_low``
``i2v-rcm``      only where the next stage's first sum is not enough:   ``rcm``
                 the network of all noise levels is distilled itself
``i2v-merge``    ``expert + w·(rcm − teacher)`` of the text networks,   ``dense_high``, ``…_low``,
                 and the same with ``(turbo − rcm)``                    ``merged_high``, ``…_low``
``i2v-turbo``    ``merged`` learns to follow ``dense``                  ``turbo_high``, ``…_low``
``i2v-student``  the experts that ship, ``dense`` or ``turbo`` as the   ``high``, ``high_int8``,
                 recipe says, and their int8 linears                    ``low``, ``low_int8``
===============  =====================================================  =======================

The network begins as the text-to-video teacher with zero columns for mask and image in its patch
embedding, so it makes the same videos until it has learned to look. Few steps carry over as the
difference that distillation made in the text-to-video network. Half of it is best: the whole of it
is too much at high noise, where it replaces the grey backgrounds of images by others, and twice as
much destroys the video. Sparse attention carries over as the difference between the sparse and the
dense few-step student, with a small loss; what the teacher's tuning made does not (docs/log.md has
the numbers). The patch embedding, which has another shape in the text
network, and the text encoder, which is frozen, stay. Captions tell a motion only: everything else
is in the image. Clips show one object.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from turbodiffusion.mini.export import (
    file,
    find_part,
    read_report,
    save_network,
    size_name,
    training_of,
    update_report,
)
from turbodiffusion.mini.images import ImageSource, Widened, i2v_card
from turbodiffusion.mini.recipe import SizeRecipe
from turbodiffusion.mini.runtime import Worker, attention_kernels, machine
from turbodiffusion.models.cards import MINI_I2V_TEACHER, ModelCard
from turbodiffusion.train.config import TrainConfig, change
from turbodiffusion.train.run import train
from turbodiffusion.train.stages import distilled, settings_of
from turbodiffusion.train.times import LogNormal, Restricted, UniformShift
from turbodiffusion.weights.load import load_dit
from turbodiffusion.weights.merge import Merged
from turbodiffusion.weights.quantize import Quantized
from turbodiffusion.weights.stream import Converted, Tensors, open_network

BOUNDARY = MINI_I2V_TEACHER.boundary
WEIGHTS: dict[str, float] = {"high": 0.5, "low": 0.5}
"""How much of what distillation changed each expert takes; docs/log.md has the other choices."""


@dataclass(frozen=True)
class Part:
    """One training: the network it starts from, its length, and what differs from the preset.

    ``first_pool`` clips are encoded before it starts. Flow matching has a rate of its own; where
    there is a teacher it is another network than the start.
    """

    name: str
    after: str
    steps: int
    seed: int
    first_pool: int
    stage: str = "flow"
    times: UniformShift | LogNormal | Restricted | None = None
    lr: float = 0.0
    teacher: str = ""


HIGH = Restricted(UniformShift(5.0), BOUNDARY, 1.0)
PARTS = (
    Part("base", "start", 1800, 51, 2048, times=UniformShift(3.0), lr=5e-4),
    Part("teacher_high", "base", 700, 52, 2048, times=HIGH, lr=3e-4),
    Part("teacher_low", "base", 700, 53, 2048,
         times=Restricted(UniformShift(2.0), 0.0, BOUNDARY), lr=3e-4),
)  # fmt: skip
DISTILLED = (Part("rcm", "base", 3000, 54, 2048, stage="rcm"),)
ALIGNED = (
    Part("turbo_high", "merged_high", 1000, 55, 2048, "align", HIGH, teacher="dense_high"),
    Part("turbo_low", "merged_low", 1000, 56, 2048, "align",
         Restricted(UniformShift(5.0), 0.0, BOUNDARY), teacher="dense_low"),
)  # fmt: skip


def train_i2v(
    size: SizeRecipe, folder: Path, worker: Worker, run_minutes: float | None = None,
    changes: Mapping[str, Any] | None = None, *, parts: Sequence[Part] = PARTS,
    quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Run or continue all of ``parts``; returns their reports by name, and ``complete``.

    A part that is finished and whose file is there is left as it is.

    Args:
        run_minutes: pause after this long.
        changes: over the settings of every part, as of ``train --set``; under the name of a part
            over its own only.
    """
    card = i2v_card(size)
    if worker.rank == 0 and not file(size, folder, "i2v_start").exists():
        _write_start(size, folder, card)
    worker.wait_for_all()
    own = {part.name for part in parts}
    shared = {name: value for name, value in (changes or {}).items() if name not in own}
    began = time.monotonic()
    for part in parts:
        left = None if run_minutes is None else run_minutes - (time.monotonic() - began) / 60
        if left is not None and left <= 0:
            break
        config = change(part_config(size, part, folder, worker, card), shared)
        config = change(config, (changes or {}).get(part.name, {}))
        if not _train_part(size, folder, worker, part, config, left, quiet):
            break
    reports = read_report(size, folder).get("i2v", {})
    chosen = {part.name: reports[part.name] for part in parts if part.name in reports}
    done = all(chosen.get(part.name, {}).get("complete") for part in parts)
    return {"complete": done, **chosen}


def part_config(
    size: SizeRecipe, part: Part, folder: Path, worker: Worker, card: ModelCard
) -> TrainConfig:
    """Settings of one part, in a folder of its own below ``folder``."""
    config = replace(
        settings_of(part.stage, "mini"),
        preset=size_name(size), card=card.name,
        init=str(find_part(size, folder, f"i2v_{part.after}")),
        out=str(folder / f"i2v_{part.name}"), data="world", seed=part.seed, steps=part.steps,
        latent_frames=0, compile=worker.compile, keep=1, sample_every=0,
    )  # fmt: skip
    if part.teacher:
        config = replace(config, teacher=str(find_part(size, folder, f"i2v_{part.teacher}")))
    if part.times:
        config = replace(config, loss=replace(config.loss, times=part.times))
    if part.lr:
        config = replace(config, optim=replace(config.optim, lr=part.lr, warmup=100))
    return config


def _train_part(
    size: SizeRecipe, folder: Path, worker: Worker, part: Part, config: TrainConfig,
    minutes: float | None, quiet: bool,
) -> bool:  # fmt: skip
    """Whether the part is complete."""
    target = file(size, folder, f"i2v_{part.name}")
    reports: dict[str, Any] = read_report(size, folder).get("i2v", {})
    before = reports.get(part.name, {})
    if before.get("complete") and before.get("steps") == config.steps and target.exists():
        return True
    config = replace(config, minutes=minutes or config.minutes)
    source = ImageSource(size, folder, worker, config.seed, config.micro_batch, part.first_pool)
    card = i2v_card(size)
    with attention_kernels(worker, card.tokens(card.frames, card.height, card.width)):
        ran = train(config, worker.device, quiet=quiet or worker.rank > 0, source=source)
    report = {
        "complete": ran["complete"], "steps": ran["steps"], "seconds": ran["seconds"],
        "broken": ran["broken"], "batch": config.batch, "lr": config.optim.lr,
        "loss": str(config.loss), "seed": config.seed, "clips": source.pool.added,
        "processes": ran["processes"], **machine(worker.device),
    }  # fmt: skip
    if worker.rank == 0:
        network = Converted(open_network(Path(config.out)))
        name = card.name.removesuffix("-teacher") if distilled(config) else card.name
        _save(size, folder, part.name, network, name, report)
        update_report(size, folder, i2v={**reports, part.name: report})
    worker.wait_for_all()
    return bool(ran["complete"])


def _write_start(size: SizeRecipe, folder: Path, card: ModelCard) -> None:
    """The text-to-video teacher with zero columns for the channels of the condition."""
    teacher = load_dit(find_part(size, folder, "t2v_teacher"), size.card)
    columns = card.dit.condition_dim * card.dit.patch_volume
    report = {"start": "text-to-video teacher", "zero columns": columns}
    _save(size, folder, "start", Widened(teacher.state_dict(), columns), card.name, report)


def make_i2v_merged(
    size: SizeRecipe, folder: Path, weights: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Give both experts few steps, and few steps with sparse attention; returns the report.

    Args:
        weights: of the few-step difference, by expert, over ``WEIGHTS``.

    Raises:
        WeightsError: a stage before this one has not been run.
    """
    own = file(size, folder, "i2v_rcm").exists()
    few, many = ("i2v_rcm", "i2v_base") if own else ("t2v_rcm", "t2v_teacher")
    rcm, before, turbo, dense_text = (
        Converted(open_network(find_part(size, folder, part)))
        for part in (few, many, "t2v_turbo", "t2v_rcm")
    )
    student = i2v_card(size).name.removesuffix("-teacher")
    made: dict[str, Any] = {}
    for expert, weight in {**WEIGHTS, **(weights or {})}.items():
        base = Converted(open_network(find_part(size, folder, f"i2v_teacher_{expert}")))
        dense = Merged(base, rcm, before, weight)
        both = Merged(dense, turbo, dense_text, 1.0)
        sums = f"teacher_{expert} + {weight:g}·({few} − {many})"
        for kind, network, text in (
            ("dense", dense, sums), ("merged", both, f"{sums} + (t2v_turbo − t2v_rcm)"),
        ):  # fmt: skip
            made[f"{kind}_{expert}"] = {"merge": text, "weight": weight,
                                        "merged": network.report.lines()}  # fmt: skip
            _save(size, folder, f"{kind}_{expert}", network, student, made[f"{kind}_{expert}"])
    reports: dict[str, Any] = read_report(size, folder).get("i2v", {})
    update_report(size, folder, i2v={**reports, **made})
    return {"complete": True, **made}


def make_i2v_students(size: SizeRecipe, folder: Path) -> dict[str, Any]:
    """The experts that ship, plain and int8: dense or sparse, as the recipe says.

    Raises:
        WeightsError: a stage before this one has not been run.
    """
    kind = {"rcm": "dense", "turbo": "turbo"}[size.image_student]
    student = i2v_card(size).name.removesuffix("-teacher")
    reports: dict[str, Any] = read_report(size, folder).get("i2v", {})
    made: dict[str, Any] = {}
    for expert in i2v_card(size).experts:
        path = find_part(size, folder, f"i2v_{kind}_{expert}")
        network = Converted(open_network(path))
        made[expert] = {"network": f"{kind}_{expert}", **training_of(path)}
        _save(size, folder, expert, network, student, made[expert])
        _save(size, folder, f"{expert}_int8", Quantized(network), student, made[expert])
    update_report(size, folder, i2v={**reports, **made})
    return {"complete": True, **made}


def _save(
    size: SizeRecipe, folder: Path, part: str, network: Tensors, card: str, report: dict[str, Any]
) -> None:
    expert = next((word for word in ("high", "low") if word in part.split("_")), "")
    save_network(size, folder, f"i2v_{part}", network, card, report, expert)
