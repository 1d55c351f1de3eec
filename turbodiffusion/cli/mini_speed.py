"""``turbodiffusion mini speed``: teacher and student timed in turns on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

KINDS = ("denoising", "to_file", "command")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``mini speed``."""
    from turbodiffusion.cli.mini import count

    parser.add_argument("--size", help="micro or mini; default: the default of generate")
    parser.add_argument("--weights", type=Path, help="folder with the weights; default: packaged")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument(
        "--rows", default="teacher,student-4", metavar="NAMES",
        help="rows of `mini judge`; the first one is compared with (default teacher,student-4)",
    )  # fmt: skip
    parser.add_argument("--repeats", type=count, default=3, help="of every time (default 3)")
    parser.add_argument(
        "--kinds", default=",".join(KINDS), help=f"which times, of {','.join(KINDS)} (default all)"
    )
    parser.add_argument("--record", action="store_true", help="store the times in the report file")
    parser.add_argument("--json", action="store_true", help="print the times as JSON")


def run(args: argparse.Namespace) -> int:
    """Time and print."""
    from turbodiffusion.cli.mini import listed, size_of
    from turbodiffusion.mini.export import PACKAGED
    from turbodiffusion.mini.rows import ROWS
    from turbodiffusion.mini.speed import measure_speed, record, text

    names = listed(args.rows, tuple(row.name for row in ROWS), "--rows")
    kinds = listed(args.kinds, KINDS, "--kinds")
    size = size_of(args)
    result = measure_speed(
        size, args.weights, args.device, names, args.repeats, kinds,
        lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    if args.record:
        print(f"Stored in {record(size, args.weights or PACKAGED, result)}", file=sys.stderr)
    print(json.dumps(result, indent=1) if args.json else text(result))
    return 0
