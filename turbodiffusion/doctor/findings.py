"""What a probe says: a level, what was found, what was wanted, and one command that repairs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "info", "skip", "minor", "major", "blocker"]

LEVELS: tuple[Level, ...] = ("ok", "info", "skip", "minor", "major", "blocker")
"""From harmless to "nothing runs". The last three are problems; only the last stops a user."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        probe: the probe's number, P01 to P27.
        level: see :data:`LEVELS`.
        found: what is there, one sentence.
        wanted: what should be there, for problems.
        fix: what the command does, or what to do where no command can.
        command: one line to paste into the user's own shell, or "".
        cause: the entry of the error catalogue that explains more, or "".
        repairable: whether ``setup --fix`` can do it.
    """

    probe: str
    level: Level
    found: str
    wanted: str = ""
    fix: str = ""
    command: str = ""
    cause: str = ""
    repairable: bool = False

    @property
    def problem(self) -> bool:
        return self.level in ("minor", "major", "blocker")
