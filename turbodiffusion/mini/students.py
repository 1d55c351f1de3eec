"""From the teacher to the shipped student: the stages of an embedded size after its teacher.

==========  ==========================================================  =======================
stage       what happens                                                writes ``<size>_t2v_…``
==========  ==========================================================  =======================
``sla``     the teacher learns sparse-linear attention                  ``sla``
``rcm``     the teacher is distilled into a few-step student            ``rcm``
``turbo``   ``rcm + (sla − teacher)``, then int8 linears                ``turbo``, ``turbo_int8``
==========  ==========================================================  =======================

The first two run on the trainer of :mod:`turbodiffusion.train` with its presets, in any order;
their checkpoints and metrics lie in a folder of the stage's name.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from turbodiffusion.mini.export import (
    file,
    find_part,
    read_report,
    size_name,
    training_of,
    update_report,
)
from turbodiffusion.mini.recipe import SizeRecipe
from turbodiffusion.mini.runtime import Worker, attention_kernels, machine
from turbodiffusion.mini.source import WorldSource
from turbodiffusion.train.config import TrainConfig, change
from turbodiffusion.train.run import train
from turbodiffusion.train.stages import distilled, settings_of
from turbodiffusion.weights.merge import Merged
from turbodiffusion.weights.quantize import Quantized
from turbodiffusion.weights.stream import Converted, Tensors, open_network, save

TRAINED = ("sla", "rcm")
STAGES = (*TRAINED, "turbo")
SEEDS = {"sla": 31, "rcm": 41}


def student_config(
    size: SizeRecipe, stage: str, folder: Path, worker: Worker, changes: dict[str, Any]
) -> TrainConfig:
    """Settings of a trained stage: the preset of the size, this folder, then ``changes``."""
    config = replace(
        settings_of(stage, size_name(size)),
        card=size.card_name,
        init=str(find_part(size, folder, "t2v_teacher")),
        out=str(folder / stage),
        data="world",
        seed=SEEDS[stage],
        compile=worker.compile,
        keep=2,
    )
    return change(config, changes)


def train_student(
    size: SizeRecipe, folder: Path, worker: Worker, stage: str, run_minutes: float | None = None,
    changes: dict[str, Any] | None = None, *, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Run or continue ``sla`` or ``rcm``; returns the report stored with the weights.

    The averaged weights are written after every run, so that an unfinished student can be tried.
    A finished stage whose file is there is left as it is.

    Args:
        run_minutes: pause after this long. changes: over the preset, as of ``train --set``.
    """
    target, teacher = file(size, folder, f"t2v_{stage}"), find_part(size, folder, "t2v_teacher")
    config = student_config(size, stage, folder, worker, changes or {})
    report: dict[str, Any] = read_report(size, folder).get(stage, {})
    if report.get("complete") and report.get("steps") == config.steps and target.exists():
        return report
    config = replace(config, minutes=run_minutes or config.minutes)
    source = WorldSource(size, folder, worker, config.seed, config.micro_batch)
    card = size.card
    with attention_kernels(worker, card.tokens(card.frames, card.height, card.width)):
        ran = train(config, worker.device, quiet=quiet or worker.rank > 0, source=source)
    report = {
        "complete": ran["complete"], "recipe": recipe_of(config), "steps": ran["steps"],
        "seconds": ran["seconds"], "broken": ran["broken"], "processes": ran["processes"],
        "samples": ran["steps"] * config.batch, "clips": source.pool.added,
        "teacher": training_of(teacher).get("samples"), **machine(worker.device),
    }  # fmt: skip
    if worker.rank == 0:
        name = size_name(size) if distilled(config) else size.card_name
        _write(size, folder, stage, Converted(open_network(Path(config.out))), name, report)
    return report


def recipe_of(config: TrainConfig) -> dict[str, Any]:
    """What decides the result of a run, as plain values."""
    places = ("out", "init", "minutes", "keep", "log_every", "save_every", "sample_every")
    return {k: v for k, v in config.as_json().items() if k not in places}


def make_turbo(size: SizeRecipe, folder: Path) -> dict[str, Any]:
    """Merge and quantise; returns the report, which says what the merge did.

    Raises:
        WeightsError: a stage before this one has not been run.
    """
    parts = {p: find_part(size, folder, f"t2v_{p}") for p in ("teacher", "sla", "rcm")}
    teacher, sla, rcm = (Converted(open_network(path)) for path in parts.values())
    merged = Merged(rcm, sla, teacher, 1.0)
    stages = {name: training_of(parts[name]) for name in TRAINED}
    report = {
        "complete": all(one.get("complete", False) for one in stages.values()),
        "merge": "rcm + 1·(sla − teacher)", "merged": merged.report.lines(), **stages,
    }  # fmt: skip
    _write(size, folder, "turbo", merged, size_name(size), report)
    quantized = Quantized(Converted(open_network(file(size, folder, "t2v_turbo"))))
    _write(size, folder, "turbo_int8", quantized, size_name(size), report)
    return report


def _write(
    size: SizeRecipe, folder: Path, part: str, network: Tensors, card: str, report: dict[str, Any]
) -> None:
    metadata = {"card": card, "role": "dit", "training": json.dumps(report)}
    folder.mkdir(parents=True, exist_ok=True)
    save(network, file(size, folder, f"t2v_{part}"), metadata, force=True)
    update_report(size, folder, **{part: report})
