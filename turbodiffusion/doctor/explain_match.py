"""Where the patterns of the catalogue occur in a text, in time linear in its length.

Python's ``re`` walks the text once a pattern, slowly, and there are more than a hundred. Most
patterns hold a run of fixed letters, and ``in`` finds those letters a hundred times faster; only
where they occur is the pattern searched.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from turbodiffusion.doctor.catalogue import FAILURES, OWN
from turbodiffusion.doctor.catalogue.entry import Entry, Near

_OWN_CODE = re.compile(r'\[([a-z0-9]{2,30}(?:-[a-z0-9]{1,30}){1,6})\]|"code": ?"([a-z0-9-]{3,60})"')
_BEFORE_CODE = re.compile(r"(error|warning|stopped):? $", re.IGNORECASE)


@dataclass(frozen=True)
class Match:
    """Where a pattern was found, and the values of its named groups."""

    start: int
    values: dict[str, str] = field(default_factory=dict)


def letters(pattern: str) -> str:
    """The longest run of fixed letters that every match of ``pattern`` contains, in lower case.

    Reads what the catalogue uses: groups and classes end a run, a quantifier takes the letter
    before it away, and a pattern with a ``|`` outside of groups is refused: list two patterns.
    """
    runs: list[str] = []
    run, depth, i = "", 0, 0
    while i < len(pattern):
        char = pattern[i]
        if char == "\\":
            i += 1
            fixed = "" if pattern[i].isalnum() else pattern[i]
        elif char == "[":
            i = pattern.index("]", i + (2 if pattern[i + 1] != "^" else 3))
            fixed = ""
        elif char in "?*{":
            run = run[:-1]
            i = pattern.index("}", i) if char == "{" else i
            fixed = ""
        elif char == "|" and not depth:
            raise ValueError(f"{pattern!r} has alternatives; list them as two patterns")
        else:
            depth += (char == "(") - (char == ")")
            fixed = "" if char in "()^$.+|" else char
        if fixed and not depth:
            run += fixed
        else:
            runs.append(run)
            run = ""
        i += 1
    return max([*runs, run], key=len).lower()


@dataclass(frozen=True)
class Search:
    """One compiled pattern of an entry."""

    entry: Entry
    needles: tuple[str, ...]
    first: re.Pattern[str]
    then: re.Pattern[str] | None = None
    within: int = 0

    def find(self, text: str, lowered: str) -> Match | None:
        """The first match in ``text``, whose lower-case form is ``lowered``."""
        if not all(needle in lowered for needle in self.needles):
            return None
        if self.then is None:
            found = self.first.search(text)
            return found and Match(found.start(), _values(found))
        ends = [m.start() for m in self.then.finditer(text)]
        for found in self.first.finditer(text):
            following = bisect_left(ends, found.end())
            if following < len(ends) and ends[following] - found.end() <= self.within:
                return Match(found.start(), _values(found))
        return None


def _values(found: re.Match[str]) -> dict[str, str]:
    return {name: value for name, value in found.groupdict().items() if value}


@lru_cache(maxsize=1)
def searches() -> tuple[Search, ...]:
    """Every pattern of the catalogue, compiled once."""
    found = []
    for entry in FAILURES:
        found += [_compiled(entry, pattern, re.IGNORECASE) for pattern in entry.patterns]
        found += [_compiled(entry, pattern) for pattern in entry.exact]
    return tuple(found)


def _compiled(entry: Entry, pattern: str | Near, flags: int = 0) -> Search:
    if isinstance(pattern, str):
        return Search(entry, (letters(pattern),), re.compile(pattern, flags))
    return Search(
        entry,
        (letters(pattern.first), letters(pattern.then)),
        re.compile(pattern.first, flags),
        re.compile(pattern.then, flags),
        pattern.within,
    )


def matches(text: str, known: set[str]) -> Iterator[tuple[Entry, Match]]:
    """The first match of every entry that is not yet in ``known``, in no order.

    Args:
        text: collapsed text, see :func:`turbodiffusion.doctor.explain_text.collapsed`.
        known: ids to skip.
    """
    lowered = text.lower()
    best: dict[str, tuple[Entry, Match]] = {}
    for search in searches():
        if search.entry.id in known:
            continue
        found = search.find(text, lowered)
        if found and (search.entry.id not in best or found.start < best[search.entry.id][1].start):
            best[search.entry.id] = (search.entry, found)
    for code, start in _own_codes(text):
        if code not in known and code not in best and code in _own():
            best[code] = (_own()[code], Match(start))
    yield from best.values()


def _own_codes(text: str) -> Iterator[tuple[str, int]]:
    """Error codes as our commands print them: ``error [code]``, ``Error: [code]``, JSON."""
    for found in _OWN_CODE.finditer(text):
        start = found.start()
        if found[2] or _BEFORE_CODE.search(text[max(0, start - 10) : start]):
            yield found[1] or found[2], start


@lru_cache(maxsize=1)
def _own() -> dict[str, Entry]:
    return {entry.id: entry for entry in OWN}
