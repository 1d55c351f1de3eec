"""``turbodiffusion export RUN OUT``: from training runs to one file that ``generate`` loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from turbodiffusion.errors import UsageError


def add_parser(subparsers: Any) -> None:
    """Add the command to the main parser."""
    parser = subparsers.add_parser(
        "export",
        help="make a file from a training run: average, merge, int8 in one go",
        description="Takes the averaged network of the newest checkpoint of RUN, in the released "
        "types. --sla adds what the run RUN2 has learnt since --base, --quantize makes the linears "
        "int8. An OUT without extension becomes a distributed checkpoint again.",
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="training run or checkpoint")
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT",
                        help="NAME.safetensors, NAME.pth or a folder "
                        "(default RUN/export.safetensors)")  # fmt: skip
    parser.add_argument("--sla", type=Path, metavar="RUN2", help="sparse-attention run")
    parser.add_argument("--base", type=Path, metavar="FILE", help="what RUN2 was trained from")
    parser.add_argument("--weight", type=float, default=1.0, help="of RUN2 (default 1)")
    parser.add_argument("--quantize", action="store_true", help="int8 linears")
    parser.add_argument("--force", action="store_true", help="replace OUT where it exists")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, say what the merge did, and print one line about the result."""
    from turbodiffusion.cli.merge import written
    from turbodiffusion.weights.distributed import save_distributed
    from turbodiffusion.weights.merge import Merged
    from turbodiffusion.weights.quantize import Quantized
    from turbodiffusion.weights.stream import Converted, Tensors, open_network, save

    if bool(args.sla) != bool(args.base):
        raise UsageError(
            "export-base",
            "--sla and --base belong together: the difference of the two is added.",
            "Give the checkpoint that the sparse-attention run started from as --base.",
        )
    if args.out is None and not args.run_folder.is_dir():
        raise UsageError(
            "export-out", f"{args.run_folder} is no folder that the result could be put into.",
            "Name the file to write: turbodiffusion export RUN OUT.safetensors",
        )  # fmt: skip
    network: Tensors = Converted(open_network(args.run_folder))
    if args.sla:
        plus, minus = (Converted(open_network(path)) for path in (args.sla, args.base))
        merged = Merged(network, plus, minus, args.weight)
        print("\n".join(merged.report.lines()))
        network = merged
    if args.quantize:
        network = Quantized(network)
    out = args.out or args.run_folder / "export.safetensors"
    if not out.suffix:
        save_distributed(network, out)
        print(f"{out}: {len(network.spec)} tensors in a distributed checkpoint")
        return 0
    print(written(out, save(network, out, force=args.force)))
    return 0
