"""``doctor --kernels`` and ``--speed``: work that needs torch, in a child with a time limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from turbodiffusion.doctor.child import Child
from turbodiffusion.doctor.child import run as run_child

LIMITS = {"kernels": 240.0, "speed": 60.0}
"""Seconds. Compiling every kernel once takes most of them; later runs find them in the cache."""


@dataclass(frozen=True)
class Measured:
    """What a child measured: rows under a name, or the sentence that says why not."""

    name: str
    body: dict[str, Any]

    @property
    def failed(self) -> bool:
        """Whether a number was wrong, or there was no answer at all."""
        return "error" in self.body or any(row.get("error") for row in self.body.get("rows", ()))

    def text(self) -> str:
        """The table for a terminal."""
        if "error" in self.body:
            return f"{self.name}: no result. {self.body['error']}"
        return "\n".join([self.body["title"], *self.body["lines"]])


def run(name: str, python: str, root: str) -> Measured:
    """Start the child called ``name``."""
    answer = run_child(python, Child(name, (root,), LIMITS[name]))
    return Measured(name, answer)
