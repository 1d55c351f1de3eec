"""The least quality with which ``mini`` may ship, checked against a measured result.

Accuracies are of all videos of a split unless a number of objects is named. A gate whose rows were
not measured is shown as such and neither holds nor fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from turbodiffusion.mini.table import NOTHING, align

Values = dict[str, Any]


@dataclass(frozen=True)
class Gate:
    """A measured value and its bound, both None where a row is missing."""

    row: str
    what: str
    value: float | None
    bound: float | None
    least: bool = True

    @property
    def holds(self) -> bool | None:
        if self.value is None or self.bound is None:
            return None
        return self.value >= self.bound if self.least else self.value <= self.bound


class _Measured:
    """Looks values of a result up."""

    def __init__(self, result: Values) -> None:
        self.rows, self.whole = result.get("rows", []), result.get("whole", [])

    def joint(self, row: str, split: str, objects: int | None = None) -> float | None:
        """Share of right videos, over the given number of objects or all."""
        found = [
            r["joint"] for r in self.rows
            if r["row"] == row and r["split"] == split and objects in (None, r["objects"])
            and "joint" in r
        ]  # fmt: skip
        samples = sum(one["samples"] for one in found)
        return sum(o["accuracy"] * o["samples"] for o in found) / samples if samples else None

    def of(self, row: str, key: str) -> Any:
        return next((r.get(key) for r in self.whole if r["row"] == row), None)

    def psnr(self) -> float | None:
        """Of the autoencoder, its weakest kind of prompt."""
        found = [r["psnr_db"] for r in self.rows if "psnr_db" in r and r["row"] == _VAE]
        return min(found, default=None)


_VAE = "VAE reconstruction"
SPLITS = ("seen", "held_out")


def gates(result: Values) -> list[Gate]:
    """All gates, with what was measured."""
    measured = _Measured(result)
    joint = measured.joint

    def relative(row: str, to: str, loss: float) -> list[Gate]:
        found = []
        for split in SPLITS:
            base = joint(to, split)
            bound = None if base is None else base - loss
            what = f"joint {_name(split)} ≥ {to} − {loss:.2f}"
            found.append(Gate(row, what, joint(row, split), bound))
        return found

    def spread(row: str) -> list[Gate]:
        undistilled = measured.of("teacher-4", "frechet")
        frechet, diversity = (measured.of(row, name) for name in ("frechet", "diversity"))
        return [
            Gate(row, "Fréchet ≤ teacher-4", frechet, undistilled, least=False),
            Gate(row, "diversity ≥ 0.8", diversity, 0.8),
        ]

    steps = measured.of("int8-4", "step_cosine")
    return [
        *(Gate(_VAE, f"joint {_name(s)} ≥ 0.97", joint(_VAE, s), 0.97) for s in SPLITS),
        Gate(_VAE, "PSNR ≥ 34 dB", measured.psnr(), 34.0),
        Gate("teacher", "joint seen, 1 object ≥ 0.90", joint("teacher", "seen", 1), 0.90),
        Gate("teacher", "joint seen, 2 objects ≥ 0.70", joint("teacher", "seen", 2), 0.70),
        Gate("teacher", "joint held-out, 1 object ≥ 0.80", joint("teacher", "held_out", 1), 0.80),
        *relative("rcm-4", "teacher", 0.05),
        *relative("student-4", "rcm-4", 0.07),  # as sparsity and int8 together
        *spread("rcm-4"),
        *spread("int8-4"),
        *relative("sla-teacher", "teacher", 0.03),
        *relative("merged-4", "rcm-4", 0.05),
        *relative("turbo-4", "rcm-4", 0.05),
        *relative("int8-4", "turbo-4", 0.02),
        Gate("int8-4", "cosine per step to turbo-4 ≥ 0.99", min(steps) if steps else None, 0.99),
    ]  # fmt: skip


def report(found: Sequence[Gate]) -> str:
    """One line a gate, and how many hold."""
    words = {True: "holds", False: "FAILS", None: "not measured"}
    number: Callable[[float | None], str] = lambda v: NOTHING if v is None else f"{v:.4g}"  # noqa: E731
    lines = [["row", "gate", "measured", "bound", ""]]
    lines += [[g.row, g.what, number(g.value), number(g.bound), words[g.holds]] for g in found]
    marks = [gate.holds for gate in found]
    said = [f"{marks.count(True)} of {len(marks)} gates hold"]
    counts = {"failed": marks.count(False), "not measured": marks.count(None)}
    said += [f"{n} {word}" for word, n in counts.items() if n]
    return f"{align(lines)}\n{', '.join(said)}."


def as_json(found: Sequence[Gate]) -> list[Values]:
    """Plain values of the gates."""
    return [{**vars(gate), "holds": gate.holds} for gate in found]


def _name(split: str) -> str:
    return split.replace("_", "-")
