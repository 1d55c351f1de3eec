"""Readings over time: sampled beside a run, and summed up in a few figures.

Energy comes from the GPU's own counter where there is one, else from the sampled power. A reason
for a lower clock counts for the time between two readings, so short ones can be missed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from turbodiffusion.errors import TurboDiffusionError
from turbodiffusion.memory.nvml import HARMLESS, Reader, Reading

INTERVAL = 0.25
"""Seconds between two readings of a run."""


@dataclass
class Summary:
    """One GPU over a stretch of time; add readings in order."""

    name: str = ""
    seconds: float = 0.0
    readings: int = 0
    memory_peak: int | None = None
    power_peak: float | None = None
    temperature_peak: int | None = None
    reasons: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _energy: tuple[float, float] | None = None
    _sampled: float = 0.0
    _last: tuple[float, Reading] | None = None

    def add(self, at: float, now: Reading) -> None:
        """``now`` was read at the time ``at`` in seconds of any clock."""
        self.name, self.readings = now.name, self.readings + 1
        self.memory_peak = _larger(self.memory_peak, now.memory_used)
        self.power_peak = _larger(self.power_peak, now.power)
        self.temperature_peak = _larger(self.temperature_peak, now.temperature)
        for key in ("busy", "power", "clock"):
            value = getattr(now, key)
            if value is not None:
                self._sums[key] += value
                self._counts[key] += 1
        if now.energy is not None:
            first = self._energy[0] if self._energy else now.energy
            self._energy = (first, now.energy)
        if self._last is not None:
            before, last = self._last
            passed = at - before
            self.seconds += passed
            if last.power is not None and now.power is not None:
                self._sampled += passed * (last.power + now.power) / 2
            for reason in last.reasons:
                self.reasons[reason] += passed
        self._last = (at, now)

    def mean(self, key: str) -> float | None:
        """Of ``busy`` (percent), ``power`` (W) or ``clock`` (MHz)."""
        return self._sums[key] / self._counts[key] if self._counts[key] else None

    @property
    def energy(self) -> float | None:
        """Joules."""
        if self._energy is not None:
            return self._energy[1] - self._energy[0]
        return self._sampled if self._counts["power"] > 1 else None

    @property
    def slowed(self) -> dict[str, float]:
        """Seconds at a lower clock for each reason that is not normal."""
        return {k: round(v, 2) for k, v in self.reasons.items() if k not in HARMLESS and v > 0}

    def as_json(self) -> dict[str, Any]:
        """For a file's settings: bytes, watts, joules, MHz; what the GPU does not tell is left
        out."""
        values = {
            "name": self.name,
            "seconds": round(self.seconds, 2),
            "memory_peak": self.memory_peak,
            "busy_percent": _rounded(self.mean("busy")),
            "power_mean": _rounded(self.mean("power")),
            "power_peak": _rounded(self.power_peak),
            "energy": _rounded(self.energy),
            "clock_mean": _rounded(self.mean("clock")),
            "temperature_peak": self.temperature_peak,
            "slowed": self.slowed,
        }
        return {k: v for k, v in values.items() if v is not None}

    def sentence(self) -> str:
        """The same for people."""
        parts = []
        if self.memory_peak is not None:
            parts.append(f"{self.memory_peak / 2**30:.1f} GiB at most")
        for key, text in (
            ("busy", "{:.0f} % busy"),
            ("power", "{:.0f} W"),
            ("clock", "{:.0f} MHz"),
        ):
            if (value := self.mean(key)) is not None:
                parts.append(text.format(value))
        if self.energy is not None:
            parts.append(f"{self.energy:.0f} J")
        parts += [f"{seconds:.1f} s slowed by {reason}" for reason, seconds in self.slowed.items()]
        return f"{self.name}: {', '.join(parts) or 'no readings'}"


class Sampler:
    """Reads one GPU in the background until it is stopped.

    Args:
        reader: closed by :meth:`stop`.
        uuid: of the GPU; NVML counts in PCI order, torch need not. "" takes the first one.
    """

    def __init__(
        self, reader: Reader, uuid: str = "", interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.summary = Summary()
        self._reader, self._uuid, self._interval, self._clock = reader, uuid, interval, clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Sampler:
        """Take a first reading and begin."""
        self.sample()
        self._thread.start()
        return self

    def sample(self) -> None:
        """One reading now; a GPU that stops answering must not end a run."""
        with self._lock, contextlib.suppress(TurboDiffusionError):
            found = self._reader.read()
            mine = [r for r in found if self._uuid and self._uuid in r.uuid] or found
            if mine:
                self.summary.add(self._clock(), mine[0])

    def stop(self) -> Summary:
        """A last reading, and everything so far."""
        if self._thread.is_alive():
            self._stop.set()
            self._thread.join(TIMEOUT)
        self.sample()
        self._reader.close()
        return self.summary

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.sample()


TIMEOUT = 5.0  # seconds that a reading may still take when a run ends


def _larger(known: Any, new: Any) -> Any:
    return new if known is None else known if new is None else max(known, new)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
