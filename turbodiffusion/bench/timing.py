"""How long a call takes when its inputs are not in the cache and others run beside it.

Contestants run in turn, so that a clock that drifts or a neighbour that wakes up meets all of
them; every second round runs backwards. Before each call a large buffer is read, which leaves the
L2 cache full of something else and clean: after a write the contestant would pay for the write
back. What is reported is the median.

On a GPU the time between two events counts the device's work only, provided that the host has
queued it in time. The host is given a head start: the stream first spins for as long as queueing
the call took when it was warmed up. That is how an operator runs inside a network, where the host
is many kernels ahead; a whole network is timed without it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

Call = Callable[[], object]

MOST_ROUNDS = 50
FLUSHED_BYTES = 256 << 20  # beyond the L2 of any GPU (B200: 126 MB) and most processors' L3
LONGEST_LEAD = 0.02  # seconds of head start; a call that takes longer to queue is limited by it


class Clock(Protocol):
    """Times one call; GPU and CPU have one each, tests their own."""

    def prepare(self, name: str, call: Call) -> None:
        """Warm ``call`` up, which compiles what it needs."""

    def measure(self, name: str, call: Call) -> float:
        """Seconds of one call from a cold cache."""


@dataclass(frozen=True)
class Times:
    """Seconds of one contestant, in the order they were taken."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles over the median: how far a median may be trusted."""
        if len(self.seconds) < 4:
            return (max(self.seconds) - min(self.seconds)) / 2 / self.median
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median


class CpuClock:
    """Wall clock."""

    def __init__(self) -> None:
        self.flushed = torch.ones(FLUSHED_BYTES // 4)

    def prepare(self, name: str, call: Call) -> None:
        call()

    def measure(self, name: str, call: Call) -> float:
        self.flushed.sum()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


class GpuClock:
    """CUDA events on the current stream. ``lead`` gives the host its head start."""

    def __init__(self, device: torch.device, lead: bool = True) -> None:
        self.device, self.lead = device, lead
        self.flushed = torch.ones(FLUSHED_BYTES // 4, device=device)
        self.leads: dict[str, int] = {}
        self.cycles = 1e9
        self.cycles = self._cycles_per_second()

    def _cycles_per_second(self) -> float:
        """Of the counter that ``_sleep`` counts, measured: the clock rate differs by GPU."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(1000)
        start.record()
        torch.cuda._sleep(10_000_000)
        end.record()
        torch.cuda.synchronize(self.device)
        return 1e7 / (start.elapsed_time(end) * 1e-3)

    def prepare(self, name: str, call: Call) -> None:
        call()  # compiles
        torch.cuda.synchronize(self.device)
        begin = time.perf_counter()
        call()
        queued = time.perf_counter() - begin
        torch.cuda.synchronize(self.device)
        lead = min(2 * queued, LONGEST_LEAD) if self.lead else 0.0
        self.leads[name] = int(lead * self.cycles)

    def measure(self, name: str, call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flushed.sum()
        torch.cuda._sleep(self.leads[name])
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end) * 1e-3


def clock(device: torch.device, lead: bool = True) -> Clock:
    return GpuClock(device, lead) if device.type == "cuda" else CpuClock()


def race(
    calls: Mapping[str, Call],
    clock: Clock,
    *,
    seconds: float,
    least: int = 3,
    most: int = MOST_ROUNDS,
    now: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, Times], dict[str, str]]:
    """Time every contestant in turn until ``seconds`` are spent.

    Args:
        calls: contestants by name; the order is that of the first round.
        least: rounds that are run however long they take; ``most`` bounds them.

    Returns:
        The times of those that ran, and for the others the sentence that says why they did not.
    """
    failures: dict[str, str] = {}
    running: dict[str, Call] = {}
    for name, call in calls.items():
        try:
            clock.prepare(name, call)
            running[name] = call
        except Exception as error:
            failures[name] = reason(error)
    taken: dict[str, list[float]] = {name: [] for name in running}
    end = now() + seconds
    for turn in range(most):
        if not running or (turn >= least and now() >= end):
            break
        order = list(running) if turn % 2 == 0 else list(reversed(running))
        for name in order:
            taken[name].append(clock.measure(name, running[name]))
    return {name: Times(tuple(values)) for name, values in taken.items()}, failures


def reason(error: BaseException) -> str:
    """One line about a failure, for a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
