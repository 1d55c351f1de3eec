"""From the teacher to the shipped student: the stages of an embedded size after its teacher.

===========  ===========================================================  ======================
stage        what happens                                                 writes ``<size>_t2v_…``
===========  ===========================================================  ======================
``sla``      the teacher learns sparse-linear attention                   ``sla``
``rcm``      the teacher is distilled into a few-step student             ``rcm``
``merge``    ``rcm + (sla − teacher)``                                    ``merged``
``follow``   ``merged`` learns to follow ``rcm``                          ``followed``
``turbo``    and to make what the teacher makes; int8 linears             ``turbo``,
                                                                          ``turbo_int8``
``student``  the network that ships, ``rcm`` or ``turbo``, and its int8   ``student``,
                                                                          ``student_int8``
===========  ===========================================================  ======================

Four of them run on the trainer of :mod:`turbodiffusion.train` with its presets; checkpoints and
metrics lie in a folder of the stage's name. The published recipe ends with the merge. In networks
as small as these both differences are large and sparsity costs more, as ``mini judge`` shows; which
student ships is an entry of the recipe, decided by its gates.
"""

from __future__ import annotations

from dataclasses import replace
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
from turbodiffusion.mini.recipe import SizeRecipe
from turbodiffusion.mini.runtime import Worker, attention_kernels, machine
from turbodiffusion.mini.source import WorldSource
from turbodiffusion.train.config import TrainConfig, change
from turbodiffusion.train.run import train
from turbodiffusion.train.stages import distilled, settings_of
from turbodiffusion.weights.merge import Merged
from turbodiffusion.weights.quantize import Quantized
from turbodiffusion.weights.stream import Converted, open_network

TRAINED = {"sla": "sla", "rcm": "rcm", "follow": "align", "turbo": "match"}
"""Stage → what it is called in :mod:`turbodiffusion.train`."""
SEEDS = {"sla": 31, "rcm": 41, "follow": 61, "turbo": 71}
WRITES = {"follow": "t2v_followed"}
"""Stage → what it writes, where that is not called after it."""

STARTS = {
    "sla": {"init": "t2v_teacher", "teacher": "t2v_teacher"},
    "rcm": {"init": "t2v_teacher", "teacher": "t2v_teacher"},
    "follow": {"init": "t2v_merged", "teacher": "t2v_rcm"},
    "turbo": {"init": "t2v_followed", "teacher": "t2v_teacher", "leader": "t2v_rcm"},
}
"""Stage → the networks that it starts from, see :class:`~turbodiffusion.train.config.TrainConfig`.
"""


def student_config(
    size: SizeRecipe, stage: str, folder: Path, worker: Worker, changes: dict[str, Any]
) -> TrainConfig:
    """Settings of a trained stage: the preset of the size, this folder, then ``changes``."""
    starts: dict[str, Any] = {
        role: str(find_part(size, folder, part)) for role, part in STARTS[stage].items()
    }
    config = replace(
        settings_of(TRAINED[stage], size_name(size)),
        card=size.card_name,
        **starts,
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
    """Run or continue a stage of :data:`TRAINED`; returns the report stored with the weights.

    The averaged weights are written after every run, so that an unfinished student can be tried.
    A finished stage whose file is there is left as it is.

    Args:
        run_minutes: pause after this long. changes: over the preset, as of ``train --set``.
    """
    part = WRITES.get(stage, f"t2v_{stage}")
    target = file(size, folder, part)
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
        **machine(worker.device),
    }  # fmt: skip
    if worker.rank == 0:
        name = size_name(size) if distilled(config) else size.card_name
        network = Converted(open_network(Path(config.out)))
        save_network(size, folder, part, network, name, report)
        update_report(size, folder, **{stage: report})
        if stage == "turbo":
            whole = Converted(open_network(target))
            save_network(size, folder, "t2v_turbo_int8", Quantized(whole), name, report)
    return report


def recipe_of(config: TrainConfig) -> dict[str, Any]:
    """What decides the result of a run, as plain values."""
    places = ("out", "init", "teacher", "leader", "minutes", "keep", "log_every", "save_every")
    return {k: v for k, v in config.as_json().items() if k not in places}


def make_merged(size: SizeRecipe, folder: Path) -> dict[str, Any]:
    """``rcm + (sla − teacher)``; returns the report, which says what the merge did.

    Raises:
        WeightsError: a stage before this one has not been run.
    """
    parts = {p: find_part(size, folder, p) for p in ("t2v_teacher", "t2v_sla", "t2v_rcm")}
    teacher, sla, rcm = (Converted(open_network(path)) for path in parts.values())
    merged = Merged(rcm, sla, teacher, 1.0)
    report = {
        "complete": True, "merge": "rcm + 1·(sla − teacher)", "merged": merged.report.lines(),
        "steps": {name: training_of(parts[name]).get("steps") for name in ("t2v_sla", "t2v_rcm")},
    }  # fmt: skip
    save_network(size, folder, "t2v_merged", merged, size_name(size), report)
    update_report(size, folder, merged=report)
    return report


def make_student(size: SizeRecipe, folder: Path) -> dict[str, Any]:
    """The shipped student, plain and int8, from the network that the recipe names.

    Raises:
        WeightsError: that stage has not been run.
    """
    source = find_part(size, folder, f"t2v_{size.student}")
    report = {**training_of(source), "complete": True, "network": size.student}
    network = Converted(open_network(source))
    save_network(size, folder, "t2v_student", network, size_name(size), report)
    save_network(size, folder, "t2v_student_int8", Quantized(network), size_name(size), report)
    update_report(size, folder, student=report)
    return report
