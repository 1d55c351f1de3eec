"""What this machine can do at best, measured and not read from a data sheet.

A copy between two large buffers counts what it reads and what it writes. Matrix products are the
vendor library's, large and square; of several sizes the fastest counts. The 8-bit ceiling is the
faster of int8 and fp8, since which of the two a kernel uses is our choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from turbodiffusion.bench.shapes import Rate
from turbodiffusion.bench.timing import Call, Clock, race, reason

SECONDS = 1.5  # per ceiling


@dataclass(frozen=True)
class Ceiling:
    """Operations or bytes a second, and what was run; ``value`` is None where it cannot run."""

    name: str
    value: float | None
    how: str

    @property
    def text(self) -> str:
        if self.value is None:
            return f"{self.name}: none ({self.how})"
        unit, size = ("GB/s", 1e9) if self.name == "copy" else ("TFLOP/s", 1e12)
        if self.name == "int8":
            unit = "TOP/s"
        return f"{self.name}: {self.value / size:.4g} {unit} ({self.how})"


@dataclass(frozen=True)
class Ceilings:
    """All of them, and the rate that a share refers to."""

    each: tuple[Ceiling, ...]

    def rates(self) -> dict[Rate, float]:
        """By the kind of work. Where a machine has no 8-bit product the bf16 one stands for it."""
        found = {c.name: c.value for c in self.each if c.value}
        eight = max(found.get("int8", 0.0), found.get("fp8", 0.0)) or found["bf16"]
        return {"bf16": found["bf16"], "8-bit": eight, "copy": found["copy"]}


def measure(device: torch.device, clock: Clock, seconds: float = SECONDS) -> Ceilings:
    """Measure every ceiling of ``device``."""
    gpu = device.type == "cuda"
    sizes = (8192, 16384) if gpu else (1024,)
    copied = 2 << 30 if gpu else 128 << 20
    found = [_copy(device, clock, copied, seconds)]
    for name, make in (("bf16", _bf16), ("int8", _int8), ("fp8", _fp8)):
        found.append(_product(name, make, device, clock, sizes, seconds))
    return Ceilings(tuple(found))


def _copy(device: torch.device, clock: Clock, size: int, seconds: float) -> Ceiling:
    source = torch.ones(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    times, _ = race({"copy": lambda: target.copy_(source)}, clock, seconds=seconds)
    return Ceiling("copy", 2 * size / times["copy"].median, f"{size >> 20} MiB, read + write")


def _product(
    name: str,
    make: Callable[[int, torch.device], Call],
    device: torch.device,
    clock: Clock,
    sizes: tuple[int, ...],
    seconds: float,
) -> Ceiling:
    best, how = 0.0, ""
    for size in sizes:
        try:
            call = make(size, device)
        except Exception as error:
            how = reason(error)
            continue
        times, failures = race({name: call}, clock, seconds=seconds / len(sizes))
        if name in failures:
            how = failures[name]
            continue
        rate = 2 * size**3 / times[name].median
        if rate > best:
            best, how = rate, f"{size}³ by {LIBRARY[name]}"
    return Ceiling(name, best or None, how)


LIBRARY = {"bf16": "torch.mm", "int8": "torch._int_mm", "fp8": "torch._scaled_mm"}


def _bf16(size: int, device: torch.device) -> Call:
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return lambda: torch.mm(a, b.mT)


def _int8(size: int, device: torch.device) -> Call:
    a, b = (_integers(size, device) for _ in range(2))
    return lambda: torch._int_mm(a, b.mT)


def _fp8(size: int, device: torch.device) -> Call:
    a, b = (
        torch.randn(size, size, device=device).clamp(-4, 4).to(torch.float8_e4m3fn)
        for _ in range(2)
    )
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(a, b.mT, one, one, out_dtype=torch.bfloat16)


def _integers(size: int, device: torch.device) -> Tensor:
    return torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device)
