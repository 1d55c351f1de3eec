"""The rows of the quality table, as data: which weights, which attention, how many steps.

A row goes one stage further than the one it is compared with, so that each stage of the recipe
answers for its own loss: few steps (``rcm``), sparse attention (``merged``, ``followed`` and,
distilled again, ``turbo``), int8 linears on top (``int8``), 8-bit attention on top (``sagesla``).
The undistilled teacher at few steps stands beside the students, because a high accuracy alone does
not show what distillation gained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from turbodiffusion.errors import UsageError
from turbodiffusion.mini.export import PACKAGED, file, find_part
from turbodiffusion.mini.recipe import SizeRecipe

TEACHER = "t2v_teacher"

Kind = Literal["dense", "sla", "sagesla", "own"]


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: as typed in ``--rows``. title: as printed; default the name.
        part: file of the network, see ``export.STAGES``; "" for rows that sample nothing.
        attention: how the network computes self-attention; ``own``: as the file was trained.
        steps: 1–4 for a student; of the solver for a teacher, 0 the card's.
        few_step: the student's sampler, without guidance.
        guided: guidance of the card's strength, two network calls a step.
        untuned: give a network without it a zero projection of the linear branch.
        reference: row that it is compared with video by video, from the same noise.
    """

    name: str
    title: str = ""
    part: str = ""
    attention: Kind = "dense"
    steps: int = 0
    few_step: bool = False
    guided: bool = True
    untuned: bool = False
    reference: str = ""

    @property
    def shown(self) -> str:
        return self.title or self.name


def _student(name: str, part: str, steps: int, reference: str = "", attention: Kind = "sla") -> Row:
    return Row(name, "", part, attention, steps, few_step=True, guided=False, reference=reference)


ROWS: tuple[Row, ...] = (
    Row("truth", "rendered truth"),
    Row("vae", "VAE reconstruction", reference="truth"),
    Row("teacher", part=TEACHER),
    Row("teacher-8", part=TEACHER, steps=8),
    Row("teacher-4", part=TEACHER, steps=4),
    Row("teacher-4-plain", part=TEACHER, steps=4, guided=False),
    Row("sla-teacher", part="t2v_sla", attention="sla", reference="teacher"),
    Row("sla-untuned", part=TEACHER, attention="sla", untuned=True, reference="teacher"),
    *(_student(f"rcm-{n}", "t2v_rcm", n, attention="dense") for n in (4, 2, 1)),
    _student("merged-4", "t2v_merged", 4, "rcm-4"),
    _student("followed-4", "t2v_followed", 4, "rcm-4"),
    *(_student(f"turbo-{n}", "t2v_turbo", n, f"rcm-{n}") for n in (4, 2, 1)),
    _student("student-4", "t2v_student_int8", 4, "rcm-4", "own"),
    _student("int8-4", "t2v_turbo_int8", 4, "turbo-4"),
    _student("sagesla-4", "t2v_turbo_int8", 4, "int8-4", "sagesla"),
)
"""In an order in which a row comes after its reference."""

BY_NAME = {row.name: row for row in ROWS}


@dataclass(frozen=True)
class Pair:
    """Two rows whose joint accuracy is compared on the same prompts and noise.

    ``aim`` is the least difference hoped for, in points; None: shown without one.
    """

    later: str
    earlier: str
    aim: float | None = None


PAIRS: tuple[Pair, ...] = (
    Pair("rcm-4", "teacher", -2),
    Pair("student-4", "rcm-4", -1),
    Pair("student-4", "teacher", -2),
    Pair("merged-4", "rcm-4"),
    Pair("followed-4", "rcm-4"),
    Pair("turbo-4", "followed-4"),
    Pair("turbo-4", "rcm-4", -1),
    Pair("int8-4", "turbo-4", -1),
    Pair("sagesla-4", "int8-4"),
    Pair("int8-4", "teacher"),
    Pair("sla-teacher", "teacher"),
    Pair("sla-teacher", "sla-untuned"),
    Pair("rcm-4", "teacher-4"),
    Pair("rcm-4", "teacher-4-plain"),
    Pair("int8-4", "teacher-4-plain"),
)
TOLERANCE = 1.0
"""An aim is met when the interval's lower end is above the aim minus this, in points."""


def choose(words: Sequence[str], size: SizeRecipe, folder: Path | None) -> list[Row]:
    """The rows called ``words``, in the table's order.

    ``available`` stands for those whose files are there, ``all`` for every one.

    Raises:
        UsageError: a word is no row. WeightsError: the file of a named row is missing.
    """
    known = ("available", "all", *BY_NAME)
    for word in words:
        if word not in known:
            raise UsageError(
                "mini-list",
                f"--rows has {word!r}; it takes {', '.join(known)}, separated by commas.",
                "For example: --rows teacher,rcm-4,int8-4",
            )
    wanted = set(BY_NAME) if "all" in words else set(words) & set(BY_NAME)
    for name in wanted:
        if BY_NAME[name].part:
            find_part(size, folder, BY_NAME[name].part)
    if "available" in words:
        wanted |= {row.name for row in ROWS if available(row, size, folder)}
    return [row for row in ROWS if row.name in wanted]


def available(row: Row, size: SizeRecipe, folder: Path | None) -> bool:
    """Whether the network of a row is in ``folder`` or in the package."""
    if not row.part:
        return True
    return any(file(size, place, row.part).exists() for place in (folder or PACKAGED, PACKAGED))
