"""What is measured between two reports: losses, the time of each part, memory.

Times are those of the device. On a GPU the host runs ahead of it, so parts are enclosed in events,
which are read at the report and delay nothing; what the host waits for (the data) goes by its own
clock.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.memory.host import peak_ram
from turbodiffusion.parallel.ranks import Ranks

COUNTS = "_broken"
"""Metrics with this ending are numbers of samples: they are added up, not averaged."""


class _Wall:
    """The time of the host."""

    @staticmethod
    def now() -> float:
        return time.perf_counter()

    @staticmethod
    def between(begin: float, end: float) -> float:
        return end - begin


class _Events:
    """The time of the GPU's stream."""

    @staticmethod
    def now() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @staticmethod
    def between(begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return begin.elapsed_time(end) / 1000


Mark = tuple[Any, Any]
"""A clock and what it showed."""


class Meter:
    """Collects on one process; reports are over all."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.values: dict[str, list[Tensor]] = defaultdict(list)
        self.spans: dict[str, list[tuple[Mark, Any]]] = defaultdict(list)
        self.clock = _Events if ranks.device.type == "cuda" else _Wall

    def add(self, name: str, value: Tensor) -> None:
        """One value (0-d) of a metric; it may still be on its way on the device."""
        self.values[name].append(value.detach())

    def start(self, *, host: bool = False) -> Mark:
        """The beginning of a part; ``host``: of one that happens on the CPU."""
        clock = _Wall if host else self.clock
        return clock, clock.now()

    def stop(self, name: str, since: Mark) -> None:
        """The end of the part ``name`` that began at ``since``."""
        self.spans[name].append((since, since[0].now()))

    def report(self) -> dict[str, float]:
        """Everything since the last report, which starts anew; all processes call it together.

        Metrics are means over passes and processes without the values that are not finite; how
        many losses were not is ``unstable``. ``time/NAME`` is the mean of one pass through the part
        in seconds, ``time/data_max`` that of the slowest process; ``memory_gib`` the peak of a
        process (GPU memory, or resident on a CPU), the mean over processes and the largest.
        """
        found: dict[str, float] = {}
        values = {n: torch.stack([v.double() for v in vs]) for n, vs in self.values.items()}
        losses = values.get("loss", torch.zeros(0))
        values["unstable" + COUNTS] = (~losses.isfinite()).double()
        for name, spans in self.spans.items():
            seconds = [clock.between(begin, end) for (clock, begin), end in spans]
            values[f"time/{name}"] = torch.tensor(seconds, dtype=torch.float64)
        memory = self._memory()
        values["memory_gib"] = torch.tensor([memory])
        names = sorted(values)
        sums, counts = [], []
        for name in names:
            finite = values[name][values[name].isfinite()]
            sums.append(float(finite.sum()))
            counts.append(float(finite.numel()))
        over_all = self._reduce([*sums, *counts])
        for name, total, count in zip(names, over_all, over_all[len(names) :], strict=False):
            if name.endswith(COUNTS):  # the processes of a context group see the same samples
                found[name] = total * self.ranks.data_world
            else:
                found[name] = total / count if count else math.nan
        found["unstable"] = found.pop("unstable" + COUNTS)
        found["memory_gib_max"] = self._largest(memory)
        if "data" in self.spans:
            found["time/data_max"] = self._largest(float(values["time/data"].mean()))
        self.values.clear()
        self.spans.clear()
        return found

    def _reduce(self, numbers: list[float]) -> list[float]:
        """Means over the processes, in one exchange."""
        mean = self.ranks.mean(self._tensor(numbers))
        return mean.tolist()

    def _largest(self, number: float) -> float:
        return float(self.ranks.largest(self._tensor([number])))

    def _tensor(self, numbers: list[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=self.ranks.device)

    def _memory(self) -> float:
        device = self.ranks.device
        used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_ram()
        return used / 2**30
