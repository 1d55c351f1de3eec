"""``turbodiffusion monitor``: what the GPUs are doing, live."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from turbodiffusion.errors import UsageError
from turbodiffusion.memory.monitor import Summary
from turbodiffusion.memory.nvml import HARMLESS, Reading, open_reader

COLUMNS = "time", "index", "name", "memory_used", "memory_total", "busy", "power", "power_limit", \
    "temperature", "clock", "clock_limit", "reasons"  # fmt: skip


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    p = subparsers.add_parser(
        "monitor", help="show what the GPUs are doing, live",
        description="Utilisation, memory, power, clock and the reasons for a lower clock of every "
        "NVIDIA GPU, until Ctrl-C, then a summary. Uses the package nvidia-ml-py if it is there, "
        "else nvidia-smi. `generate --monitor` stores the readings of a run with the video.",
    )  # fmt: skip
    p.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between")
    p.add_argument("--count", type=int, metavar="N", help="stop after so many readings")
    form = p.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="one line a GPU and reading")
    form.add_argument("--json", action="store_true", help="one JSON line a reading")


def run(args: argparse.Namespace) -> int:
    """Show readings until Ctrl-C or ``--count``."""
    if args.interval <= 0 or (args.count is not None and args.count < 1):
        raise UsageError("monitor-number", "--interval and --count must be above 0.",
                         "Leave them out for a reading a second.")  # fmt: skip
    reader = open_reader()
    summaries: dict[int, Summary] = {}
    live = sys.stdout.isatty() and not (args.csv or args.json)
    if args.csv:
        print(",".join(COLUMNS))
    elif not args.json:
        print(f"read through {reader.source}; Ctrl-C ends")
    shown = 0
    try:
        for readings in _readings(reader, args.interval, args.count):
            for one in readings:
                summaries.setdefault(one.index, Summary()).add(time.monotonic(), one)
            if args.json:
                stamp = {"time": round(time.time(), 3)}
                rows = [dataclasses.asdict(r) for r in readings]
                print(json.dumps({**stamp, "gpus": rows}), flush=True)
            elif args.csv:
                for one in readings:
                    print(csv_line(one, time.time()), flush=True)
            else:
                if live and shown:
                    print(f"\x1b[{shown}A", end="")  # over the last table
                lines = table(readings)
                shown = len(lines)
                print("\n".join(f"{line}\x1b[K" if live else line for line in lines), flush=True)
    except KeyboardInterrupt:
        print()
    finally:
        reader.close()
    if not (args.csv or args.json):
        for summary in summaries.values():
            print(summary.sentence())
    return 0


def _readings(reader: Any, interval: float, count: int | None) -> Iterator[list[Reading]]:
    done = 0
    while True:
        yield reader.read()
        done += 1
        if count is not None and done >= count:
            return
        time.sleep(interval)


def table(readings: Sequence[Reading]) -> list[str]:
    """One line for each GPU below a head."""
    lines = [f"{'GPU':<4}{'name':<28}{'memory GiB':>14}{'busy':>7}{'power W':>12}{'°C':>5}"
             f"{'MHz':>12}  slowed by"]  # fmt: skip
    for r in readings:
        memory = _of(_gib(r.memory_used), _gib(r.memory_total), "{:.1f}")
        slowed = ", ".join(reason for reason in r.reasons if reason not in HARMLESS) or "-"
        lines.append(
            f"{r.index:<4}{r.name[:27]:<28}{memory:>14}{_or(r.busy, '{} %'):>7}"
            f"{_of(r.power, r.power_limit, '{:.0f}'):>12}{_or(r.temperature, '{}'):>5}"
            f"{_of(r.clock, r.clock_limit, '{}'):>12}  {slowed}"
        )
    return lines


def csv_line(r: Reading, at: float) -> str:
    """A reading in the order of ``COLUMNS``; what is not told is empty."""
    values: list[Any] = [f"{at:.3f}", r.index, f'"{r.name}"']
    values += [getattr(r, name) for name in COLUMNS[3:-1]]
    values.append(f'"{"; ".join(r.reasons)}"')
    return ",".join("" if v is None else str(v) for v in values)


def _gib(count: int | None) -> float | None:
    return None if count is None else count / 2**30


def _or(value: Any, form: str) -> str:
    return "n/a" if value is None else form.format(value)


def _of(value: Any, limit: Any, form: str) -> str:
    if value is None:
        return "n/a"
    return form.format(value) + (f" / {form.format(limit)}" if limit is not None else "")
