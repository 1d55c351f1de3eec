"""The cause behind a pasted log.

Every known failure found in the text is ordered by what explains most: failures that stop a run
before what a run survives, specific causes before the wrappers around them, worse before milder,
and earlier before later, because logs and chained tracebacks tell the root first. The first is
the headline. Wrappers are left out where a specific cause is known.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from turbodiffusion.doctor import explain_text
from turbodiffusion.doctor.catalogue.entry import SEVERITIES, Entry
from turbodiffusion.doctor.explain_match import matches
from turbodiffusion.doctor.explain_page import fix_lines
from turbodiffusion.errors import UsageError

SCHEMA = 1
"""Version of the JSON form."""

_ERROR_WORDS = re.compile(r"(error|exception|fatal|failed)(?!\w)", re.IGNORECASE)
_SHOWN = 160


@dataclass(frozen=True)
class Finding:
    """A known failure in a log.

    Args:
        entry: what the catalogue says about it.
        line: where it starts, counted from 1.
        seen: that line, shortened.
        values: what the pattern's named groups hold, such as a version.
        position: where it starts in its part of the log, for ordering within a line.
    """

    entry: Entry
    line: int
    seen: str
    values: dict[str, str] = field(default_factory=dict)
    position: int = 0

    @property
    def order(self) -> tuple[bool, int, int, int, int]:
        """Sort key, see the head of this file."""
        entry = self.entry
        return (
            entry.quiet,
            entry.rank,
            SEVERITIES.index(entry.severity),
            self.line,
            self.position,
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            **self.entry.as_json(),
            "values": self.values,
            "line": self.line,
            "seen": self.seen,
        }


@dataclass(frozen=True)
class Explanation:
    """What a log shows.

    Args:
        findings: known failures, the headline first.
        lines: length of the log.
        last_error: the last line that looks like an error, for logs that show nothing known.
    """

    findings: tuple[Finding, ...] = ()
    lines: int = 0
    last_error: str = ""

    @property
    def headline(self) -> Finding | None:
        """The finding that explains most, or None if nothing known was found."""
        return self.findings[0] if self.findings else None

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``; ``headline`` is also the first of ``findings``."""
        return {
            "schema": SCHEMA,
            "headline": self.headline.as_json() if self.headline else None,
            "findings": [finding.as_json() for finding in self.findings],
            "lines": self.lines,
            "last_error": self.last_error,
        }

    def render(self, shell: str = "") -> str:
        """The explanation as text.

        Args:
            shell: bash or powershell to show the commands of one; both by default, since a log
                may come from another machine.
        """
        if not self.headline:
            return self._nothing()
        lines = _headline(self.headline, shell)
        if rest := self.findings[1:]:
            lines += ["", "also in this log:"]
            lines += [f"  [{f.entry.id}] {f.entry.title} (line {f.line})" for f in rest]
            lines += ["  `turbodiffusion errors ID` explains one of them"]
        return "\n".join(lines)

    def _nothing(self) -> str:
        if not self.lines:
            return "The log is empty."
        text = f"None of the known failures is in this log ({_count(self.lines, 'line')})."
        if not self.last_error:
            return f"{text}\nNo line of it looks like an error."
        return (
            f"{text}\nIts last line that looks like an error is not in the catalogue:\n"
            f"  {self.last_error}\n"
            "`turbodiffusion doctor` checks this machine; `turbodiffusion bugreport` collects "
            "what a report needs."
        )


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _headline(found: Finding, shell: str) -> list[str]:
    entry = found.entry
    lines = [f"[{entry.id}] {entry.title}", f"  line {found.line}: {found.seen}"]
    if found.values:
        values = (f"{name.replace('_', ' ')} {value}" for name, value in found.values.items())
        lines.append(f"  found: {', '.join(values)}")
    if entry.cause:
        lines.append(f"  cause: {entry.cause}")
    return lines + fix_lines(entry.fixes, shell)


def explain(text: str) -> Explanation:
    """Find the known failures in a text."""
    return _explain(explain_text.pieces_of(text))


def explain_stream(stream: BinaryIO) -> Explanation:
    """The same for bytes in any encoding and of any length, read once from front to back."""
    return _explain(explain_text.decoded(stream))


def explain_source(name: str) -> Explanation:
    """The same for a file, or for standard input if ``name`` is ``-``.

    Raises:
        UsageError: the file cannot be read (``explain-unreadable``).
    """
    if name == "-":
        return explain_stream(sys.stdin.buffer)
    try:
        with Path(name).open("rb") as stream:
            return explain_stream(stream)
    except OSError as error:
        raise UsageError(
            "explain-unreadable",
            f"The log {name} cannot be read: {error.strerror or error}.",
            "Give the path of a text file, or - to paste the log and end it with Ctrl-D "
            "(Ctrl-Z and Enter in PowerShell).",
        ) from error


def _explain(pieces: Iterator[str]) -> Explanation:
    found: dict[str, Finding] = {}
    offset = 0
    above, text = 0, ""
    for above, raw, last in explain_text.chunks(pieces):
        text = explain_text.plain(raw)
        _search(explain_text.collapsed(text), text, above, offset, found)
        if last and not above and not any(_leads(finding.entry) for finding in found.values()):
            _search(explain_text.rejoined(text), text, above, offset, found)
        offset += len(raw)
    lines = above + text.count("\n") + (bool(text) and not text.endswith("\n"))
    return Explanation(_ordered(found.values()), lines, _last_error(text))


def _search(form: str, text: str, above: int, offset: int, found: dict[str, Finding]) -> None:
    """Add to ``found`` what ``form``, one of the forms of ``text``, shows for the first time."""
    for entry, match in matches(form, set(found)):
        visible = match.start - form.count(" ", 0, match.start)
        number, line = explain_text.locate(text, visible)
        found[entry.id] = Finding(
            entry, above + number + 1, line[:_SHOWN], match.values, offset + visible
        )


def _leads(entry: Entry) -> bool:
    """Whether the wrappers beside it say nothing more."""
    return entry.rank == 1 and not entry.quiet


def _ordered(found: Iterable[Finding]) -> tuple[Finding, ...]:
    findings = sorted(found, key=lambda finding: finding.order)
    if any(_leads(finding.entry) for finding in findings):
        findings = [finding for finding in findings if finding.entry.rank == 1]
    return tuple(findings)


def _last_error(text: str) -> str:
    """The last line that looks like an error."""
    for line in reversed(text.splitlines()):
        if _ERROR_WORDS.search(line):
            return line.strip()[:_SHOWN]
    return ""
