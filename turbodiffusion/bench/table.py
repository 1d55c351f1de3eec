"""Rows as text: one line while they are measured, a Markdown table and JSON afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from turbodiffusion.bench.cases import Row
from turbodiffusion.bench.ceilings import Ceilings
from turbodiffusion.bench.machine import Machine

SCHEMA = 1
COLUMNS = (
    *("operator", "shape", "ms", "±", "rate", "share", "error"),
    *("best rival", "rival ms", "×", "beside"),
)


def cells(row: Row) -> tuple[str, ...]:
    """The row as shown; a row that failed shows why in the place of its rate."""
    name = f"{row.operator} {row.variant}".strip()
    if row.failure or row.milliseconds is None:
        return (name, row.shape, "–", "", row.failure, *[""] * 6)
    rival = row.rival
    return (
        name,
        row.shape,
        _three(row.milliseconds),
        "" if row.spread is None else f"{100 * row.spread:.1f} %",
        _rate(row),
        "" if row.share is None else f"{100 * row.share:.0f} % {row.ceiling}",
        "" if row.error is None else f"{row.error.l2:.1e}",
        rival[0] if rival else "none",
        _three(rival[1]) if rival else "",
        f"{row.speedup:.2f}" if row.speedup else "",
        ", ".join(f"{name} {_three(ms)} ms" for name, ms in row.others.items()),
    )


def _rate(row: Row) -> str:
    """In the unit of what bounds the row."""
    if row.ceiling == "copy" and row.gigabytes is not None:
        return f"{_three(row.gigabytes)} GB/s"
    if row.tflops is None:
        return ""
    return f"{_three(row.tflops)} {'TOP/s' if row.ceiling == '8-bit' else 'TFLOP/s'}"


def _three(value: float) -> str:
    """Three significant digits, no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def heading(machine: Machine) -> list[str]:
    """The facts that belong to every number, a line each."""
    gpu = f", capability {machine.capability}" if machine.capability else ""
    driver = f", driver {machine.driver}" if machine.driver else ""
    cuda = f", CUDA {machine.cuda}" if machine.cuda else ""
    triton = f", Triton {machine.triton}" if machine.triton else ""
    return [
        f"machine: {machine.device}{gpu}, {machine.memory_gb:g} GB{driver}",
        f"host: {machine.processor}, {machine.threads} threads, {machine.system}",
        f"software: Python {machine.python}, torch {machine.torch}{cuda}{triton}",
        f"commit: {machine.commit}, {machine.date}",
        f"command: {machine.command}",
    ]


def markdown(machine: Machine, ceilings: Ceilings, rows: Sequence[Row]) -> str:
    """The whole report: facts, ceilings, table, how errors were taken, what could not run."""
    lines = [*(f"- {line}" for line in heading(machine)), ""]
    lines += [*(f"- ceiling, {c.text}" for c in ceilings.each), ""]
    lines.append(f"| {' | '.join(COLUMNS)} |")
    lines.append("|---|---|" + "---:|" * 5 + "---|---:|---:|---|")
    lines += [f"| {' | '.join(c.replace('|', '/') for c in cells(row))} |" for row in rows]
    notes = _notes(rows)
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _notes(rows: Sequence[Row]) -> list[str]:
    """Once each: where shapes are reduced, how errors were taken, which rivals are absent."""
    notes = [f"{row.shape} is reduced here to {row.reduced}." for row in rows if row.reduced]
    notes += [
        f"Error of {row.operator}: relative L2, {row.error.how}." for row in rows if row.error
    ]
    notes += [
        f"{name} did not run for {row.operator}: {why}"
        for row in rows
        for name, why in row.absent.items()
    ]
    return [f"- {note}" for note in dict.fromkeys(notes)]


def as_json(machine: Machine, ceilings: Ceilings, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything that was measured, for programs."""
    return {
        "schema": SCHEMA,
        "machine": machine.as_json(),
        "ceilings": [asdict(c) for c in ceilings.each],
        "rows": [asdict(row) for row in rows],
    }


class Live:
    """Prints rows as they come, in columns wide enough for what they usually hold."""

    WIDTHS = (19, 9, 8, 6, 13, 10, 7, 14, 8, 5, 0)

    def header(self) -> str:
        return self._line(COLUMNS)

    def line(self, row: Row) -> str:
        return self._line(cells(row))

    def _line(self, values: Sequence[str]) -> str:
        left = {0, 1, 7, 10}
        parts = (
            f"{v:<{w}}" if i in left else f"{v:>{w}}"
            for i, (v, w) in enumerate(zip(values, self.WIDTHS, strict=True))
        )
        return " ".join(parts).rstrip()
