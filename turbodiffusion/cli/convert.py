"""``turbodiffusion convert SRC DST``: between safetensors and the released ``.pth`` layout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from turbodiffusion.weights.convert import convert
from turbodiffusion.weights.detect import describe
from turbodiffusion.weights.header import read_header


def add_parser(subparsers: Any) -> None:
    """Add the command to the main parser."""
    parser = subparsers.add_parser(
        "convert",
        help="rewrite a checkpoint as .safetensors or .pth under the released names",
        description="Copies every tensor byte for byte, in constant memory. A .safetensors target "
        "also stores what the checkpoint is; a .pth target is the released flat layout. "
        "Sharded folders, diffusers components and wrapped keys are accepted as source.",
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="checkpoint file or folder")
    parser.add_argument("target", type=Path, metavar="DST", help="NAME.safetensors or NAME.pth")
    parser.add_argument("--force", action="store_true", help="replace DST where it exists")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert ``args.source`` to ``args.target`` and print one line about the result."""
    from turbodiffusion.errors import UsageError

    if args.target.exists() and not args.force:
        raise UsageError(
            "convert-target-exists", f"{args.target} exists already.", "Add --force to replace it."
        )
    source = convert(args.source, args.target)
    result = describe(read_header(args.target))
    if result.container == "pth" and source.metadata:
        kept = ", ".join(source.metadata)
        print(f"note: the .pth layout has no place for metadata ({kept})", file=sys.stderr)
    print(
        f"{args.target}: {result.card or result.kind}, {result.layout}, {result.tensors} tensors, "
        f"{args.target.stat().st_size / 1e6:.1f} MB"
    )
    return 0
