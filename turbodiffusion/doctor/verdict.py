"""Run the probes over the facts of a machine and say, in one word, whether it is ready."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from turbodiffusion.doctor.facts import Facts
from turbodiffusion.doctor.findings import LEVELS, Finding
from turbodiffusion.doctor.probes import PROBES
from turbodiffusion.errors import UsageError

SCHEMA = 1
"""Version of the JSON report; raised when a field changes its meaning or goes away."""


@dataclass(frozen=True)
class Verdict:
    """All findings in the order of the probes."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> list[Finding]:
        """What is wrong, worst first, otherwise in order."""
        wrong = [f for f in self.findings if f.problem]
        return sorted(wrong, key=lambda f: -LEVELS.index(f.level))

    @property
    def fixes(self) -> list[str]:
        """The distinct commands of the problems, in the order they should be run."""
        return list(dict.fromkeys(f.command for f in self.problems if f.command))

    @property
    def word(self) -> str:
        """``ready``, ``ready with warnings`` or ``blocked``."""
        levels = {f.level for f in self.findings}
        if "blocker" in levels:
            return "blocked"
        return "ready with warnings" if levels & {"major", "minor"} else "ready"

    @property
    def exit_code(self) -> int:
        """3 with a blocker; warnings alone are 0."""
        return 3 if self.word == "blocked" else 0

    def as_json(self, facts: Facts) -> dict[str, Any]:
        """The report with its schema version."""
        return {
            "schema": SCHEMA,
            "verdict": self.word,
            "exit_code": self.exit_code,
            "findings": [{**vars(f), "title": PROBES[f.probe].title} for f in self.findings],
            "fixes": self.fixes,
            "operators": [vars(one) for one in facts.operators],
            "gpus": [gpu.name for gpu in facts.gpus],
            "torch": f"{facts.torch.version}+{facts.torch.tag}" if facts.torch.version else "",
            "seconds": {stage: round(spent, 3) for stage, spent in facts.seconds.items()},
        }


def judge(facts: Facts, only: Sequence[str] = ()) -> Verdict:
    """Every probe, or those of ``only``, over ``facts``. A probe that fails says so itself."""
    findings: list[Finding] = []
    for number in only or PROBES:
        try:
            findings += PROBES[number].judge(facts)
        except Exception as error:  # a report with one hole is better than none
            text = f"The probe itself failed: {type(error).__name__}: {error}"
            findings.append(Finding(number, "minor", text, fix="Please report this."))
    return Verdict(tuple(findings))


def wanted(only: Sequence[str]) -> tuple[str, ...]:
    """The probes that ``--only`` names, by number or title.

    Raises:
        UsageError: there is no such probe.
    """
    titles = {probe.title.lower(): number for number, probe in PROBES.items()}
    found = []
    for word in only:
        number = word.upper() if word.upper() in PROBES else titles.get(word.lower())
        if number is None:
            raise UsageError(
                "doctor-probe-unknown",
                f"There is no probe {word!r}; there are {', '.join(sorted(PROBES))}.",
                "`turbodiffusion doctor -v` lists them with their titles.",
            )
        found.append(number)
    return tuple(dict.fromkeys(found))
