"""The report as a person reads it: one line that sums up, then only what is wrong."""

from __future__ import annotations

from turbodiffusion.doctor import rules
from turbodiffusion.doctor.facts import Facts
from turbodiffusion.doctor.findings import Finding
from turbodiffusion.doctor.probes import PROBES
from turbodiffusion.doctor.verdict import Verdict

INDENT = " " * 9


def report(facts: Facts, verdict: Verdict, *, verbose: bool = False) -> str:
    """The text of ``turbodiffusion doctor``; ``verbose`` adds what is fine or was not asked."""
    lines = [summary(facts, verdict), ""]
    if verbose:
        for finding in verdict.findings:
            lines += problem(finding) if finding.problem else [plain(finding)]
    else:
        for finding in verdict.problems:
            lines += problem(finding)
        lines += [plain(f) for f in verdict.findings if f.level == "info"]
    lines += operators(facts, verbose)
    if not verbose:
        fine = sum(f.level in ("ok", "skip") for f in verdict.findings)
        lines.append(f"{fine} other checks have no complaint; -v shows them.")
    return "\n".join(lines)


def summary(facts: Facts, verdict: Verdict) -> str:
    """The verdict, the number of problems, and the machine in a few words."""
    counts = [
        f"{count} {word if count == 1 else words}"
        for word, words, levels in (
            ("blocker", "blockers", ("blocker",)),
            ("warning", "warnings", ("major", "minor")),
        )
        if (count := sum(f.level in levels for f in verdict.findings))
    ]
    names = [gpu.name.removeprefix("NVIDIA ") for gpu in facts.gpus] or ["no GPU"]
    driver = rules.driver(facts.driver.version) if facts.driver.version else ""
    torch = f"{facts.torch.version}+{facts.torch.tag}" if facts.torch.version else "not installed"
    machine = [", ".join(names), *([f"driver {driver}"] if driver else []), f"torch {torch}"]
    problems = f" ({', '.join(counts)})" if counts else ""
    return f"{verdict.word}{problems}: {', '.join(machine)}, {facts.platform.system}"


def problem(finding: Finding) -> list[str]:
    """A problem in up to four lines, the command last and alone."""
    lines = [f"{finding.level:<8} {finding.probe} {PROBES[finding.probe].title}: {finding.found}"]
    if finding.wanted:
        lines.append(f"{INDENT}wanted: {finding.wanted}")
    if finding.fix:
        lines.append(f"{INDENT}fix: {finding.fix}")
    if finding.command:
        lines.append(f"{INDENT}  {finding.command}")
    if finding.cause:
        lines.append(f"{INDENT}more: turbodiffusion errors {finding.cause}")
    return [*lines, ""]


def plain(finding: Finding) -> str:
    """A finding that asks for nothing."""
    word = "note" if finding.level == "info" else finding.level
    return f"{word:<8} {finding.probe} {PROBES[finding.probe].title}: {finding.found}"


def operators(facts: Facts, verbose: bool) -> list[str]:
    """Which form of each operator runs; with the reason when asked, or when they are unlike."""
    rows = facts.operators
    if not rows:
        return []
    if verbose or len({row.backend for row in rows}) > 1:
        return ["", f"operators on {rows[0].device}:"] + [
            f"  {row.operator:<10} {row.backend:<9} {row.reason}" for row in rows
        ]
    names = ", ".join(row.operator for row in rows)
    return [f"Operators on {rows[0].device} run their {rows[0].backend} form: {names}."]
