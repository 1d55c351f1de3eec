"""``turbodiffusion mini judge-i2v``: how well the image-to-video model follows image and text."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    from turbodiffusion.cli.mini import count

    parser.add_argument("--size", default="mini", help="default: mini")
    parser.add_argument("--weights", type=Path, help="folder with the weights; default: packaged")
    parser.add_argument(
        "--rows", default="vae,int8,exchanged", metavar="NAMES",
        help="of vae, teacher, teacher-4, dense, merged, turbo, int8, exchanged, the control of "
        "int8 (default vae,int8,exchanged)",
    )  # fmt: skip
    parser.add_argument("--samples", type=count, default=32, help="videos of a row (default 32)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument("--record", action="store_true", help="store the rows in the report file")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure the rows and print them."""
    from turbodiffusion.cli.mini import listed
    from turbodiffusion.mini import i2v_judge
    from turbodiffusion.mini.export import PACKAGED, update_report
    from turbodiffusion.mini.recipe import recipe
    from turbodiffusion.mini.runtime import machine
    from turbodiffusion.pipeline.load import pick_device

    names = listed(args.rows, i2v_judge.ROWS, "--rows")
    size, folder = recipe(args.size), args.weights or PACKAGED
    rows = i2v_judge.measure_rows(
        size, folder, names, args.samples, args.device, lambda text: print(text, file=sys.stderr)
    )
    result = {
        "rows": [row.as_json() for row in rows],
        "chance": i2v_judge.chance(args.samples),
        "machine": machine(pick_device(args.device)),
    }
    if args.record:
        path = update_report(size, folder, i2v_quality=result)
        print(f"Stored in {path}", file=sys.stderr)
    print(json.dumps(result, indent=1) if args.json else i2v_judge.table(rows))
    return 0
