"""``turbodiffusion bench ops``: this machine's ceilings, and what share of them operators get."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure operators against the machine's ceilings and their rivals",
        description="Measure speed, with the machine, versions and commit beside every number.",
    )
    inner = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    ops = inner.add_parser(
        "ops",
        help="every accelerated operator at the sizes of the released models",
        description="Measure the machine's ceilings (copy, bf16, int8 and fp8 products), then one "
        "row per operator and shape: time, rate, share of the ceiling, error against the "
        "definition, and the fastest rival of the same run. Cold cache, contestants in turn, "
        "medians. On a CPU the shapes are reduced. docs/bench.md explains the columns.",
    )
    ops.add_argument("--only", nargs="+", default=[], metavar="ROW", help="only these operators")
    ops.add_argument(
        "--shapes", nargs="+", default=[], metavar="SHAPE", help="1.3b-480p, 14b-480p, 14b-720p"
    )
    ops.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:1")
    ops.add_argument("--quick", action="store_true", help="one shape, few rounds")
    ops.add_argument("--seconds", type=_positive, help="time for the rounds of a row (default 2)")
    ops.add_argument("--json", type=Path, metavar="FILE", help="store everything as JSON")
    ops.add_argument("--markdown", type=Path, metavar="FILE", help="store the table as Markdown")
    ops.add_argument(
        "--commit", help="name of the code, where git cannot tell (or TURBODIFFUSION_COMMIT)"
    )
    parser.set_defaults(run=run)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


def run(args: argparse.Namespace) -> int:
    """Measure, print, store; 1 when one of our operators failed."""
    from turbodiffusion.bench.run import Options
    from turbodiffusion.bench.run import run as measure

    options = Options(
        only=tuple(args.only), shapes=tuple(args.shapes), device=args.device, quick=args.quick,
        seconds=args.seconds, commit=args.commit, command=_command(args),
    )  # fmt: skip
    report = measure(
        options,
        lambda line: print(line, flush=True),
        lambda report: report.write(args.json, args.markdown),
    )
    for path in (args.json, args.markdown):
        if path is not None:
            print(f"wrote {path}")
    return 1 if report.failed else 0


def _command(args: argparse.Namespace) -> str:
    """What to type to repeat the measurement; files it was stored in are left out."""
    words = ["turbodiffusion", "bench", "ops"]
    for name in ("only", "shapes"):
        values = getattr(args, name)
        words += [f"--{name}", *values] if values else []
    if args.device != "auto":
        words += ["--device", args.device]
    if args.quick:
        words.append("--quick")
    if args.seconds is not None:
        words += ["--seconds", f"{args.seconds:g}"]
    return shlex.join(words)
