"""``turbodiffusion quantize SRC OUT``: int8 linears in the layout of the released files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to the main parser."""
    parser = subparsers.add_parser(
        "quantize",
        help="make the linears of a checkpoint int8",
        description="Writes the ten linears of each block as int8 with a scale per 128 × 128 "
        "weights, as the released -quant files have them; the rest in bf16, norms in fp32.",
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="checkpoint or training run")
    parser.add_argument("out", type=Path, metavar="OUT", help="NAME.safetensors or NAME.pth")
    parser.add_argument("--force", action="store_true", help="replace OUT where it exists")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Quantise and print one line about the result."""
    from turbodiffusion.cli.merge import written
    from turbodiffusion.weights.quantize import Quantized
    from turbodiffusion.weights.stream import open_network, save

    found = save(Quantized(open_network(args.source)), args.out, force=args.force)
    print(written(args.out, found))
    return 0
