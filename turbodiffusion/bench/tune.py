"""Times the launch candidates of every kernel on this GPU, and says which is fastest.

Launch numbers are data: a config class beside each kernel holds a heuristic and a list of
candidates. Here each candidate stands in for the heuristic in turn. It is first checked at a small
shape, by the error of its row, then timed at the real ones in the same race as all others and as
the heuristic's own choice. What was found goes into the config class by hand, with the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from turbodiffusion.bench import attention, elementwise, linear
from turbodiffusion.bench.cases import Case, Contest, Setting
from turbodiffusion.bench.shapes import Geometry, Rate, Shape
from turbodiffusion.bench.timing import Call, clock, race, reason
from turbodiffusion.ops import gpu
from turbodiffusion.ops.attention import config as attention_config
from turbodiffusion.ops.linear import config as linear_config
from turbodiffusion.ops.norm import config as norm_config
from turbodiffusion.ops.sage import config as sage_config

HEURISTIC = "heuristic"
SMALL_GRID, SMALL_HEADS = (3, 10, 20), 2  # 600 tokens: the last blocks are partial
TOLERANCE = 1.2
"""How much less exact than the heuristic's choice a candidate may be: sums in another order."""
TIMED_SHARE = 0.5
"""Of the time of an operator; the rest is for compiling and checking."""

Candidates = Callable[[tuple[int, int], Shape], Sequence[Any]]


@dataclass(frozen=True)
class Tunable:
    """A launch config that can be tuned: ``owner.method`` is the heuristic that is replaced.

    ``rows`` are (operator, variant) of the benchmark rows whose kernels it launches.
    """

    name: str
    owner: type
    method: str
    rows: tuple[tuple[str, str], ...]
    candidates: Candidates


@dataclass(frozen=True)
class Tried:
    """One candidate at one shape."""

    config: str
    milliseconds: float | None = None
    spread: float | None = None
    error: float | None = None
    failure: str = ""

    def line(self) -> str:
        if self.milliseconds is None:
            return f"  {'–':>9}  {self.config}: {self.failure}"
        spread, error = 100 * (self.spread or 0.0), self.error or 0.0
        return f"  {self.milliseconds:9.3f} ms ±{spread:4.1f} %  error {error:.1e}  {self.config}"


@dataclass(frozen=True)
class Result:
    """All candidates of a row at a shape, fastest first, those that failed last."""

    operator: str
    row: str
    shape: str
    geometry: str
    tried: tuple[Tried, ...]

    @property
    def gain(self) -> float | None:
        """How many times faster the fastest is than the heuristic's choice."""
        timed = [t for t in self.tried if t.milliseconds is not None]
        base = next((t.milliseconds for t in timed if t.config == HEURISTIC), None)
        best = timed[0].milliseconds if timed else None
        return base / best if base is not None and best is not None else None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """A heading and one line a candidate."""
        head = f"{self.row} at {self.shape}, blocks {self.geometry}"
        if self.gain is not None:
            head += f": best is {self.gain:.2f}× the heuristic"
        return [head, *(t.line() for t in self.tried)]


def tunables() -> list[Tunable]:
    """Every operator whose config offers candidates."""
    fused = tuple(("int8_fused", layer) for layer in ("qkv", "o", "ffn1", "ffn2"))
    norms = ("rms_norm", "layer_norm_modulate", "rms_norm_rope")
    return [
        Tunable("sagesla", sage_config.CoreConfig, "pick", (("sagesla", ""), ("sage", "")),
                lambda c, s: sage_config.CoreConfig.candidates(c)),
        Tunable("int8", linear_config.GemmConfig, "of", fused,
                lambda c, s: linear_config.candidates(c, s.tokens)),
        Tunable("fp8", linear_config.Fp8Config, "of", (("fp8", "qkv"), ("fp8", "ffn1")),
                lambda c, s: linear_config.fp8_candidates(c, s.tokens)),
        Tunable("sla", attention_config.AttentionConfig, "forward",
                (("sla", ""), ("cross_attention", "")),
                lambda c, s: attention_config.candidates(c, s.head_dim)),
        Tunable("norm", norm_config.RowConfig, "forward", tuple((name, "") for name in norms),
                lambda c, s: norm_config.candidates(10 * c[0] + c[1], s.dim)),
        Tunable("quantising norm", norm_config.RowConfig, "quantising",
                (("modulate_quantize", ""),),
                lambda c, s: norm_config.candidates(10 * c[0] + c[1], s.dim)),
    ]  # fmt: skip


@contextmanager
def chosen(tunable: Tunable, candidate: Any) -> Iterator[None]:
    """Have the heuristic answer ``candidate`` whatever it is asked; None leaves it alone."""
    if candidate is None:
        yield
        return
    original = tunable.owner.__dict__[tunable.method]
    setattr(tunable.owner, tunable.method, classmethod(lambda cls, *_, **__: candidate))
    try:
        yield
    finally:
        setattr(tunable.owner, tunable.method, original)


def labels(candidates: Sequence[Any]) -> list[str]:
    """Each candidate by the fields in which they differ; a single one by all of them."""
    names = [f.name for f in fields(candidates[0])] if candidates else []
    differing = [n for n in names if len({getattr(c, n) for c in candidates}) > 1] or names
    return [" ".join(f"{n}={getattr(c, n)}" for n in differing) for c in candidates]


def tune(
    tunable: Tunable,
    sizes: Sequence[Shape],
    geometries: Sequence[Geometry],
    device: torch.device,
    seconds: float,
    now: Callable[[], float] = time.perf_counter,
) -> Iterator[Result]:
    """Results of every row of ``tunable`` at every shape, within about ``seconds``.

    Time that a row leaves over goes to the next ones. Candidates for whose check no time was left
    are listed as such.
    """
    rates: dict[Rate, float] = {"bf16": 1.0, "8-bit": 1.0, "copy": 1.0}  # no share is shown
    capability = gpu.capability(device)
    end = now() + seconds
    # Only sparse attention has blocks to choose.
    work = [
        (row, s, g)
        for s in sizes
        for row in tunable.rows
        for g in (geometries if row[0] in ("sagesla", "sla") else geometries[:1])
    ]
    for i, (row, s, g) in enumerate(work):
        share = max(0.0, end - now()) / (len(work) - i)
        setting = Setting(device, g, rates, TIMED_SHARE * share)
        found = tunable.candidates(capability, s)
        entrants = dict(zip([HEURISTIC, *labels(found)], [None, *found], strict=True))
        deadline = now() + (1 - TIMED_SHARE) * share
        try:
            tried = _tried(tunable, row, s, setting, entrants, deadline, now)
        except Exception as error:
            tried = (Tried(HEURISTIC, failure=reason(error)),)
        name = " ".join(row).strip()
        yield Result(tunable.name, name, s.name, f"{g.block_q}×{g.block_k}", tried)


def _tried(
    tunable: Tunable,
    row: tuple[str, str],
    s: Shape,
    setting: Setting,
    entrants: Mapping[str, Any],
    deadline: float,
    now: Callable[[], float],
) -> tuple[Tried, ...]:
    checked = _checked(tunable, row, s, setting, entrants, deadline, now)
    right = [t for t in checked if not t.failure]
    if not right:
        return tuple(checked)
    contest = case(row, s, setting.geometry).make(setting)
    calls = {t.config: bound(tunable, entrants[t.config], contest) for t in right}
    times, failures = race(calls, clock(setting.device), seconds=setting.seconds)
    done = [
        Tried(t.config, times[t.config].median * 1e3, times[t.config].spread, t.error)
        if t.config in times
        else Tried(t.config, error=t.error, failure=failures[t.config])
        for t in right
    ]
    done.sort(key=lambda t: t.milliseconds if t.milliseconds is not None else float("inf"))
    return (*done, *(t for t in checked if t.failure))


def bound(tunable: Tunable, candidate: Any, contest: Contest) -> Call:
    """The operator's call with the candidate in the heuristic's place."""

    def call() -> object:
        with chosen(tunable, candidate):
            return contest.ours()

    return call


def _checked(
    tunable: Tunable,
    row: tuple[str, str],
    s: Shape,
    setting: Setting,
    entrants: Mapping[str, Any],
    deadline: float,
    now: Callable[[], float],
) -> list[Tried]:
    """The error of every entrant at a small shape; the first one is the measure for the others."""
    small = s.reduce(SMALL_GRID, SMALL_HEADS)
    # Norm kernels are cut to the width of a row, so that a smaller one would be another kernel.
    if tunable.owner is norm_config.RowConfig:
        small = s.reduce(SMALL_GRID, s.heads)
    contest = case(row, small, setting.geometry).make(setting)
    found: list[Tried] = []
    for name, candidate in entrants.items():
        if found and now() > deadline:
            found.append(Tried(name, failure="no time was left to try it"))
            continue
        try:
            with chosen(tunable, candidate):
                error = contest.error().l2
        except Exception as failure:
            found.append(Tried(name, failure=reason(failure)))
            continue
        limit = TOLERANCE * found[0].error + 1e-6 if found and found[0].error is not None else None
        wrong = f"error {error:.1e}" if limit is not None and not error <= limit else ""
        found.append(Tried(name, error=error, failure=wrong and f"{wrong}, limit {limit:.1e}"))
    return found


def case(row: tuple[str, str], s: Shape, g: Geometry) -> Case:
    """The benchmark row called ``row``."""
    rooms = (attention, linear, elementwise)
    return next(
        c for room in rooms for c in room.cases(s, g) if (c.operator, c.variant) == row
    )  # fmt: skip
