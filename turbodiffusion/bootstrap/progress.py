"""Turn pip's many lines into the few that a waiting person wants.

On a terminal one line moves: what is being downloaded, how far, how fast. Elsewhere (a log file,
CI) each large file gets one line. Everything pip said is in the log either way.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from typing import TextIO

WIDTH = 79  # of the line that moves; spaces erase it on every console
LARGE = 5_000_000  # bytes; smaller downloads are over before a line can be read

_FILE = re.compile(r"\s*(Downloading|Using cached) (\S+?)-([^-\s]+)-\S+\.whl \(([\d.]+) (\w+)\)")
_STEP = re.compile(r"Progress (\d+) of (\d+)")
_UNPACK = re.compile(r"Installing collected packages: (.+)")
_UNIT = {"bytes": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


def say(text: str) -> None:
    """One line for the person who waits; stdout belongs to the command."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Feed it pip's output line by line; it writes to ``stream``."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.clock = clock
        self.moving = stream.isatty()
        self.waiting = False
        self.name = ""
        self.begun = self.shown = 0.0

    def feed(self, line: str) -> None:
        """Show what ``line`` means, if anything."""
        if step := _STEP.match(line):
            self._step(int(step[1]), int(step[2]))
        elif file := _FILE.match(line):
            size = float(file[4]) * _UNIT.get(file[5], 0)
            self.name, self.begun = f"{file[2]} {file[3]}", self.clock()
            if size >= LARGE and (file[1] == "Using cached" or not self.moving):
                source = ", downloaded earlier" if file[1] == "Using cached" else ""
                self.say(f"{self.name} ({file[4]} {file[5]}{source})")
        elif unpack := _UNPACK.match(line):
            count = unpack[1].count(",") + 1
            self.say(f"unpacking {count} package{'s' if count > 1 else ''} …")
        elif "Retrying" in line and not self.waiting:
            self.waiting = True
            self.say("no answer from the package index, trying again …")

    def say(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        self.stream.write(f"    {text}\n")
        self.stream.flush()

    def close(self) -> None:
        """Leave no half-written line behind."""
        self._clear()
        self.stream.flush()

    def _step(self, done: int, total: int) -> None:
        now = self.clock()
        if not self.moving or total < LARGE or (now - self.shown < 0.2 and done < total):
            return
        self.shown = now
        rate = done / max(now - self.begun, 1e-3)
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        amount = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB, {rate / 1e6:.1f} MB/s{left}"
        line = f"    {self.name}: {amount}"
        self.stream.write(f"\r{line:<{WIDTH}}" + ("\n" if done >= total else ""))
        self.stream.flush()

    def _clear(self) -> None:
        if self.moving:
            self.stream.write(f"\r{'':<{WIDTH}}\r")
