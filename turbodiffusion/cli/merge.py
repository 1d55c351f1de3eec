"""``turbodiffusion merge BASE OUT --plus FILE --minus FILE``: add what another training changed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turbodiffusion.weights.detect import Description


def add_parser(subparsers: Any) -> None:
    """Add the command to the main parser."""
    parser = subparsers.add_parser(
        "merge",
        help="add what another training changed to a checkpoint",
        description="Writes BASE + weight · (PLUS − MINUS), tensor by tensor in little memory. "
        "Tensors of other shapes stay as in BASE; those that only PLUS has are copied. Files, "
        "sharded folders and training runs can be mixed.",
    )
    parser.add_argument("base", type=Path, metavar="BASE", help="such as the few-step student")
    parser.add_argument("out", type=Path, metavar="OUT", help="NAME.safetensors or NAME.pth")
    parser.add_argument("--plus", type=Path, required=True, metavar="FILE",
                        help="such as the sparse-attention network")  # fmt: skip
    parser.add_argument("--minus", type=Path, required=True, metavar="FILE",
                        help="what PLUS was trained from")  # fmt: skip
    parser.add_argument("--weight", type=float, default=1.0, help="of the difference (default 1)")
    parser.add_argument("--force", action="store_true", help="replace OUT where it exists")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Merge, say what happened to which tensors, and print one line about the result."""
    from turbodiffusion.weights.merge import Merged
    from turbodiffusion.weights.stream import open_network, save

    base, plus, minus = (open_network(path) for path in (args.base, args.plus, args.minus))
    merged = Merged(base, plus, minus, args.weight)
    recipe = f"{args.base.name} + {args.weight:g} * ({args.plus.name} - {args.minus.name})"
    found = save(merged, args.out, {"merged": recipe}, force=args.force)
    print("\n".join(merged.report.lines()))
    print(written(args.out, found))
    return 0


def written(path: Path, found: Description) -> str:
    """One line about a written checkpoint."""
    return (
        f"{path}: {found.card or found.kind}, {found.layout}, {found.tensors} tensors, "
        f"{path.stat().st_size / 1e6:.1f} MB"
    )
