"""Ctrl-C, and the signal by which clusters reclaim a machine, cost no work.

The first signal lets the step end and the run write a checkpoint; a second one acts as usual.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType
from typing import Any

_HEEDED = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """A context in which the signals only leave a note. In other threads than the first, which
    receive none, it does nothing."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.signal = 0
        self._before: dict[int, Any] = {}

    def asked(self) -> bool:
        """Whether a signal has come."""
        return self.signal > 0

    def __enter__(self) -> Stopping:
        try:
            self._before = {number: signal.signal(number, self._note) for number in _HEEDED}
        except ValueError:  # not the first thread
            self._before = {}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def end(self) -> None:
        """End the program as the signal would have.

        Raises:
            KeyboardInterrupt: it was Ctrl-C, here or in another process. SystemExit: another one.
        """
        if self.signal == signal.SIGTERM:
            raise SystemExit(128 + self.signal)
        raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()
        if not self.quiet:
            print("\nStopping after this step; once more: at once.", file=sys.stderr, flush=True)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
