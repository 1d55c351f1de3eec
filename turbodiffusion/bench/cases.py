"""What a row of the table is, and how one is measured."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from turbodiffusion.bench.shapes import Geometry, Rate, Shape
from turbodiffusion.bench.timing import Call, Times, clock, race, reason

OURS = "turbodiffusion"


@dataclass(frozen=True)
class Setting:
    """Where the rows are measured. ``seconds`` is the time for the rounds of one row."""

    device: torch.device
    geometry: Geometry
    rates: Mapping[Rate, float]
    seconds: float
    dtype: torch.dtype = torch.bfloat16

    def randn(self, *size: int, seed: int = 0, scale: float = 1.0) -> Tensor:
        """Normal numbers in the dtype of the activations, the same on every run."""
        generator = torch.Generator(self.device).manual_seed(seed)
        x = torch.empty(size, dtype=self.dtype, device=self.device)
        return x.normal_(generator=generator).mul_(scale)


@dataclass(frozen=True)
class Error:
    """Distance from the definition, and on which part of the result it was taken."""

    l2: float
    l1: float
    cosine: float
    how: str


def compare(actual: Tensor, expected: Tensor, how: str) -> Error:
    """Relative L2, relative L1 and cosine in float64; NaN in ``actual`` makes them infinite.

    Where all of ``expected`` is zero the distances are absolute.
    """
    a, e = actual.double().flatten(), expected.double().flatten()
    size = torch.linalg.vector_norm(e).item()
    l2 = torch.linalg.vector_norm(a - e).item()
    l1 = (a - e).abs().sum().item()
    if math.isnan(l2):
        return Error(math.inf, math.inf, 0.0, how)
    if size == 0:
        return Error(l2, l1, float(l2 == 0), how)
    norms = size * torch.linalg.vector_norm(a).item()
    cosine = torch.dot(a, e).item() / norms if norms else 0.0
    return Error(l2 / size, l1 / e.abs().sum().item(), cosine, how)


@dataclass(frozen=True)
class Contest:
    """The calls of a row on real tensors. ``error`` runs once, before anything is timed.

    ``rivals`` compute the same function; ``others`` are timed in the same race for comparison only,
    because they do less.
    """

    ours: Call
    rivals: Mapping[str, Call]
    error: Callable[[], Error]
    form: str = ""
    others: Mapping[str, Call] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A row that can be measured: its cost is known beforehand, its tensors are not made yet.

    ``flops`` and ``bytes`` are those of the operator, whatever an implementation really does;
    ``queued`` says that the host is ahead of the device, see :mod:`.timing`. ``floor`` replaces the
    least time that follows from the two, for a row of many kernels.
    """

    operator: str
    variant: str
    shape: Shape
    rate: Rate
    flops: float
    bytes: float
    make: Callable[[Setting], Contest]
    queued: bool = True
    floor: Callable[[Mapping[Rate, float]], float] | None = None

    def floor_seconds(self, rates: Mapping[Rate, float]) -> float:
        """The least time that the ceilings allow."""
        if self.floor is not None:
            return self.floor(rates)
        arithmetic = self.flops / rates[self.rate] if self.rate != "copy" else 0.0
        return max(arithmetic, self.bytes / rates["copy"])


@dataclass(frozen=True)
class Row:
    """A measured row. ``failure`` is set, and the rest empty, where it could not be measured."""

    operator: str
    variant: str
    shape: str
    reduced: str
    form: str = ""
    milliseconds: float | None = None
    spread: float | None = None
    rounds: int = 0
    tflops: float | None = None
    gigabytes: float | None = None
    ceiling: str = ""
    share: float | None = None
    error: Error | None = None
    rivals: Mapping[str, float] = field(default_factory=dict)
    others: Mapping[str, float] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    failure: str = ""

    @property
    def rival(self) -> tuple[str, float] | None:
        """The fastest rival and its milliseconds."""
        return min(self.rivals.items(), key=lambda item: item[1], default=None)

    @property
    def speedup(self) -> float | None:
        if self.rival is None or self.milliseconds is None:
            return None
        return self.rival[1] / self.milliseconds


def measure(case: Case, setting: Setting) -> Row:
    """Build the tensors of a case, check its result, time it beside its rivals, free everything.

    A rival that cannot run is listed with its reason; when our operator cannot, the row says so.
    """
    base = Row(case.operator, case.variant, case.shape.name, case.shape.reduced)
    try:
        return _measure(case, setting, base)
    except Exception as error:
        return Row(base.operator, base.variant, base.shape, base.reduced, failure=reason(error))
    finally:
        gc.collect()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(case: Case, setting: Setting, base: Row) -> Row:
    contest = case.make(setting)
    error = contest.error()
    times, failures = race(
        {OURS: contest.ours, **contest.rivals, **contest.others},
        clock(setting.device, lead=case.queued),
        seconds=setting.seconds,
    )
    if OURS in failures:
        raise RuntimeError(failures[OURS])
    return _row(base, case, setting, contest, error, times, failures)


def _row(
    base: Row,
    case: Case,
    setting: Setting,
    contest: Contest,
    error: Error,
    times: Mapping[str, Times],
    failures: Mapping[str, str],
) -> Row:
    ours = times[OURS]
    seconds = ours.median
    bytes_bound = case.rate == "copy" or (
        case.bytes / setting.rates["copy"] > case.flops / setting.rates[case.rate]
    )
    return Row(
        base.operator, base.variant, base.shape, base.reduced,
        form=contest.form,
        milliseconds=seconds * 1e3,
        spread=ours.spread,
        rounds=len(ours.seconds),
        tflops=case.flops / seconds / 1e12 if case.flops else None,
        gigabytes=case.bytes / seconds / 1e9 if case.bytes else None,
        ceiling="floor" if case.floor is not None else "copy" if bytes_bound else case.rate,
        share=case.floor_seconds(setting.rates) / seconds,
        error=error,
        rivals={name: times[name].median * 1e3 for name in contest.rivals if name in times},
        others={name: times[name].median * 1e3 for name in contest.others if name in times},
        absent=dict(failures),
    )  # fmt: skip
