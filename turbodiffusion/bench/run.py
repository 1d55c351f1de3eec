"""``turbodiffusion bench ops``: ceilings, then one row per operator and shape."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from turbodiffusion.bench import attention, elementwise, linear, network, table
from turbodiffusion.bench.cases import Case, Row, Setting, measure
from turbodiffusion.bench.ceilings import SECONDS, Ceilings
from turbodiffusion.bench.ceilings import measure as measure_ceilings
from turbodiffusion.bench.machine import Machine, read
from turbodiffusion.bench.shapes import Geometry, Shape, named
from turbodiffusion.bench.timing import clock
from turbodiffusion.errors import SetupError, UsageError

CPU_GRID = (8, 32, 32)  # 8192 tokens: long enough that sparse attention has something to win
QUICK_GRID = (4, 16, 16)
REDUCED_HEADS = 2


@dataclass(frozen=True)
class Options:
    """What to measure. ``only`` and ``shapes`` are names, all where empty.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        quick: fewer rounds; one shape unless shapes are named, and a smaller one on a CPU.
        seconds: time for the rounds of a row; by default 2 s, 0.3 s when quick.
    """

    only: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    device: str = "auto"
    quick: bool = False
    seconds: float | None = None
    commit: str | None = None
    command: str = "turbodiffusion bench ops"


@dataclass(frozen=True)
class Report:
    """Everything that was measured."""

    machine: Machine
    ceilings: Ceilings
    rows: tuple[Row, ...]

    def write(self, json_file: Path | None, markdown_file: Path | None) -> None:
        """Store the report; folders are made."""
        if json_file is not None:
            text = json.dumps(
                table.as_json(self.machine, self.ceilings, self.rows), indent=1, ensure_ascii=False
            )
            _write(json_file, text + "\n")
        if markdown_file is not None:
            _write(markdown_file, table.markdown(self.machine, self.ceilings, self.rows))

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.failure]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def run(
    options: Options,
    say: Callable[[str], None],
    store: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Measure, telling ``say`` every line as it is known.

    ``store`` is given the report so far after every row, so that a run that is stopped leaves what
    it measured.

    Raises:
        UsageError: an operator or shape that does not exist.
        SetupError: a device that is not here.
    """
    device = choose_device(options.device)
    sizes = choose_shapes(options, device)
    wanted = choose_cases(options.only, sizes)
    seconds = options.seconds or (0.3 if options.quick else 2.0)

    machine = read(device, options.command, options.commit)
    for line in table.heading(machine):
        say(line)
    ceilings = measure_ceilings(device, clock(device), 0.3 if options.quick else SECONDS)
    for ceiling in ceilings.each:
        say(f"ceiling, {ceiling.text}")
    rates = ceilings.rates()
    live = table.Live()
    say("")
    say(live.header())
    rows = []
    for case, geometry in wanted:
        row = measure(case, Setting(device, geometry, rates, seconds))
        rows.append(row)
        say(live.line(row))
        store(Report(machine, ceilings, tuple(rows)))
    return Report(machine, ceilings, tuple(rows))


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` takes the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            "bench-device-unknown", f"There is no device {name!r}.", "Use cpu, cuda or cuda:1."
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SetupError(
            "bench-device-missing",
            f"{name} was asked for, but torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices.",
            "Use --device cpu, or run `turbodiffusion doctor`.",
        )
    return device


def choose_shapes(options: Options, device: torch.device) -> list[Shape]:
    """Released sizes on a GPU, reduced ones on a CPU."""
    sizes = named(list(options.shapes))
    if not options.shapes and (options.quick or device.type == "cpu"):
        sizes = sizes[:1]
    if device.type == "cpu":
        grid = QUICK_GRID if options.quick else CPU_GRID
        sizes = [s.reduce(grid, REDUCED_HEADS) for s in sizes]
    return sizes


def geometry_of(s: Shape) -> Geometry:
    """Blocks and ratio as the card of the shape sets them."""
    a = s.card.attention
    return Geometry(a.topk, a.block_q, a.block_k)


def choose_cases(only: Sequence[str], sizes: Sequence[Shape]) -> list[tuple[Case, Geometry]]:
    """The rows in the order of the table: operator by operator, shape by shape."""
    found = [
        (case, geometry_of(s))
        for room in (network, attention, linear, elementwise)
        for s in sizes
        for case in room.cases(s, geometry_of(s))
    ]
    names = list(dict.fromkeys(case.operator for case, _ in found))
    for name in only:
        if name not in names:
            raise UsageError(
                "bench-operator-unknown",
                f"There is no row {name!r}; rows are {', '.join(names)}.",
                "Use one or several of these names with --only.",
            )
    order = {name: i for i, name in enumerate(names)}
    kept = [pair for pair in found if not only or pair[0].operator in only]
    return sorted(kept, key=lambda pair: order[pair[0].operator])
