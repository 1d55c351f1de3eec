"""Progress of a run on stderr: phase, step, time left. stdout stays free for results."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Progress:
    """Reports the phases of ``total`` videos: bars where a person is watching, a line for each
    longer phase elsewhere, so that logs stay readable."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.label = ""

    def note(self, text: str) -> None:
        """One line for the person at the terminal."""
        print(text, file=sys.stderr, flush=True)

    def begin(self, number: int, prompt: str) -> None:
        """Video ``number``, from 0, starts."""
        if self.total > 1:
            self.label = f"[{number + 1}/{self.total}] "
            self.note(f"{self.label}{prompt}")

    def end(self, seconds: dict[str, float]) -> None:
        """The video is on disk."""
        parts = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
        self.note(f"{self.label}done in {sum(seconds.values()):.1f} s ({parts})")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase without steps; a short one is not mentioned."""
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        if spent >= 0.5:
            self.note(f"{self.label}{name}: {spent:.1f} s")

    @contextmanager
    def steps(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A phase with ``total`` steps; yields the function to call with the number done."""
        if not sys.stderr.isatty():
            with self.phase(name):
                yield lambda count: None
            return
        from tqdm import tqdm

        bar: Any = tqdm(
            total=total, desc=f"{self.label}{name}", leave=False, file=sys.stderr,
            unit="step" if name == "denoising" else "frame", dynamic_ncols=True,
        )  # fmt: skip

        def done(count: int) -> None:
            bar.update(count - bar.n)

        try:
            yield done
        finally:
            bar.close()
