"""What the catalogue knows about one failure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["blocker", "major", "minor", "info"]

SEVERITIES: tuple[Severity, ...] = ("blocker", "major", "minor", "info")
"""Nothing runs; a feature is lost or slow; an inconvenience; harmless."""


@dataclass(frozen=True)
class Fix:
    """One remedy.

    Args:
        says: what it does, one sentence.
        bash: the command for a POSIX shell, or "" where there is none.
        powershell: the command for PowerShell 5 and later, or "".
        where: the only place where it applies (Linux, Windows, WSL, Docker), or "" for all.
    """

    says: str
    bash: str = ""
    powershell: str = ""
    where: str = ""

    def command(self, shell: str) -> str:
        """The command for ``shell``, which is bash or powershell."""
        return self.powershell if shell == "powershell" else self.bash

    def as_json(self) -> dict[str, str]:
        """All four, as plain values."""
        return {
            "says": self.says,
            "bash": self.bash,
            "powershell": self.powershell,
            "where": self.where,
        }


def do(says: str) -> Fix:
    """A remedy that is no command."""
    return Fix(says)


def run(says: str, command: str) -> Fix:
    """One command that both shells understand."""
    return Fix(says, command, command)


def either(says: str, bash: str, powershell: str) -> Fix:
    """One remedy in the words of two shells."""
    return Fix(says, bash, powershell)


def linux(says: str, command: str = "") -> Fix:
    """Only on Linux, WSL and containers included."""
    return Fix(says, bash=command, where="Linux")


def windows(says: str, command: str = "") -> Fix:
    """Only on Windows itself."""
    return Fix(says, powershell=command, where="Windows")


def wsl(says: str, bash: str = "", powershell: str = "") -> Fix:
    """Only for WSL; PowerShell commands run on the Windows side."""
    return Fix(says, bash, powershell, where="WSL")


def docker(says: str, command: str = "") -> Fix:
    """Only for containers; the command runs on the host."""
    return Fix(says, command, command, where="Docker")


@dataclass(frozen=True)
class Near:
    """Two patterns, the second at most ``within`` characters after the first.

    ``first.{0,8000}then`` says the same and would look at 8000 characters after every ``first``.
    """

    first: str
    then: str
    within: int

    def __str__(self) -> str:
        return f"{self.first} … {self.then}"


@dataclass(frozen=True)
class Entry:
    """One known failure: how a log shows it, what it means and what removes it.

    Patterns are regular expressions, any of which is enough. They are searched in text whose white
    space is collapsed to single blanks, so they contain blanks and never line breaks. Repetitions
    have a limit: a search takes time in proportion to the text. Named groups are values to show.

    Args:
        id: stable name. Upper case for failures of other software, an error code for our own.
        title: the headline, one sentence.
        cause: what is behind it.
        fixes: remedies, the likeliest first.
        patterns: what to look for in any case; none for our own codes, which logs name themselves.
        exact: patterns in this case only, for words that are common in another.
        seen: texts as they really appear; each is recognised by this entry first (tested).
        rank: 1 specific, 2 common, 3 a wrapper around some other failure.
        severity: see :data:`SEVERITIES`.
        stage: install, import, first-kernel, model-load, run or download.
        platforms: where it is known to happen: linux, windows, wsl, docker, separated by blanks.
        relation: N cannot happen in our own installation and is here for logs of other packages,
            P is found beforehand by the probes, R is met at run time.
        probes: numbers of the probes that find it, P01 to P27, separated by blanks.
        sign: it hints at a failure but is none, so it never explains an exception.
    """

    id: str
    title: str
    cause: str
    fixes: tuple[Fix, ...]
    patterns: tuple[str | Near, ...] = ()
    exact: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    rank: int = 1
    severity: Severity = "blocker"
    stage: str = "run"
    platforms: str = ""
    relation: str = "R"
    probes: str = ""
    sign: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Z0-9]+(-[A-Z0-9]+)*|[a-z0-9]+(-[a-z0-9]+)+", self.id):
            raise ValueError(f"{self.id!r} is neither UPPER-CASE nor kebab-case")

    @property
    def own(self) -> bool:
        """Whether this is a code that our own commands print."""
        return self.id.islower()

    @property
    def quiet(self) -> bool:
        """Whether a run goes on in spite of it: it must not hide what stopped the run."""
        return self.severity in ("minor", "info")

    def as_json(self) -> dict[str, Any]:
        """What a reader needs, as plain values."""
        return {
            "id": self.id,
            "title": self.title,
            "severity": self.severity,
            "rank": self.rank,
            "stage": self.stage,
            "cause": self.cause,
            "fixes": [fix.as_json() for fix in self.fixes],
        }


def own(
    code: str, title: str, *fixes: Fix | str, cause: str = "", rank: int = 1, stage: str = "run"
) -> Entry:
    """An entry for a code that our own commands print, with what it means in general.

    Args:
        code: as raised. Logs name it, so there is nothing to search for.
        title: what it means.
        fixes: remedies; a string stands for one that is no command.
        cause: more about the reason, where the title leaves something open.
        rank: 3 for codes that pass on what another program said: what it said explains more.
        stage: when it happens.
    """
    remedies = tuple(Fix(fix) if isinstance(fix, str) else fix for fix in fixes)
    return Entry(code, title, cause, remedies, rank=rank, stage=stage)
