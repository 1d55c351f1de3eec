"""One line on the terminal that says how far a run is, how fast, and when it will be over."""

from __future__ import annotations

import sys
import time
from collections import deque

_WINDOW = 20  # steps whose mean speed is shown


class Progress:
    """Speed over the last steps and the line that shows it.

    Args:
        total: steps of the run, over all its starts.
        batch: samples of a step.
        operations: useful operations of a step on one GPU; ``peak``: what the GPU can do a second.
        quiet: measure only.
    """

    def __init__(
        self, total: int, batch: int, operations: float, peak: float | None, quiet: bool
    ) -> None:
        self.total, self.batch, self.operations, self.peak = total, batch, operations, peak
        self.quiet = quiet
        self.live = sys.stderr.isatty()
        self.times = deque([time.monotonic()], maxlen=_WINDOW + 1)

    def restart(self) -> None:
        """Go on from now: what has happened since the last step is no part of the next one."""
        idle = time.monotonic() - self.times[-1]
        self.times = deque([t + idle for t in self.times], maxlen=_WINDOW + 1)

    def tick(self) -> None:
        """A step is complete."""
        self.times.append(time.monotonic())

    def speed(self) -> dict[str, float]:
        """``samples_per_second``, ``seconds_per_step`` and, where the GPU is known, ``mfu``."""
        steps = len(self.times) - 1
        seconds = max(self.times[-1] - self.times[0], 1e-9) / max(steps, 1)
        values = {"samples_per_second": self.batch / seconds, "seconds_per_step": seconds}
        if self.peak:
            values["mfu"] = self.operations / seconds / self.peak
        return values

    def show(self, step: int, loss: float, *, final: bool = False) -> None:
        """Draw the line for ``step`` steps done; where nobody watches, only when ``final``."""
        if self.quiet or not (self.live or final):
            return
        speed = self.speed()
        left = (self.total - step) * speed["seconds_per_step"]
        mfu = f"  {speed['mfu']:.0%} of the GPU's peak" if "mfu" in speed else ""
        line = (
            f"step {step}/{self.total}  loss {loss:.4g}  "
            f"{speed['samples_per_second']:.3g} samples/s{mfu}  {duration(left)} left"
        )
        start, end = ("\r\033[K", "\n" if final else "") if self.live else ("", "\n")
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """``2 d 3 h``, ``4 h 5 min``, ``6 min 7 s`` or ``8 s``."""
    rest = round(seconds)
    for size, big, small, unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if rest >= size:
            return f"{rest // size} {big} {rest % size // small} {unit}"
    return f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"
