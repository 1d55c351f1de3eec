"""``turbodiffusion merge BASE OUT``: add what another training changed, or LoRAs."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbodiffusion.errors import UsageError

if TYPE_CHECKING:
    from turbodiffusion.weights.detect import Description
    from turbodiffusion.weights.stream import Tensors


def add_parser(subparsers: Any) -> None:
    """Add the command to the main parser."""
    parser = subparsers.add_parser(
        "merge",
        help="add what another training changed to a checkpoint, or LoRAs",
        description="Writes BASE + weight · (PLUS − MINUS), tensor by tensor in little memory. "
        "Tensors of other shapes stay as in BASE; those that only PLUS has are copied. Files, "
        "sharded folders and training runs can be mixed. LoRAs are added to the result, or to "
        "BASE where no PLUS is given.",
    )
    parser.add_argument("base", type=Path, metavar="BASE", help="such as the few-step student")
    parser.add_argument("out", type=Path, metavar="OUT", help="NAME.safetensors or NAME.pth")
    parser.add_argument("--plus", type=Path, metavar="FILE",
                        help="such as the sparse-attention network")  # fmt: skip
    parser.add_argument("--minus", type=Path, metavar="FILE", help="what PLUS was trained from")
    parser.add_argument("--weight", type=float, default=1.0, help="of the difference (default 1)")
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:STRENGTH]",
                        help="LoRA to add (default strength 1); may be repeated")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace OUT where it exists")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Merge, say what happened to which tensors, and print one line about the result."""
    from turbodiffusion.weights.merge import Merged
    from turbodiffusion.weights.stream import open_network, save

    if bool(args.plus) != bool(args.minus) or not (args.plus or args.lora):
        raise UsageError(
            "merge-arguments",
            "There is nothing to merge: a difference needs --plus and --minus.",
            "Give both, or LoRAs with --lora FILE.",
        )
    network: Tensors = open_network(args.base)
    recipe, lines = [args.base.name], []
    if args.plus:
        plus, minus = (open_network(path) for path in (args.plus, args.minus))
        merged = Merged(network, plus, minus, args.weight)
        recipe.append(f"{args.weight:g} * ({args.plus.name} - {args.minus.name})")
        network, lines = merged, merged.report.lines()
    if args.lora:
        network, more = add_loras(network, args.base, args.lora)
        recipe += [f"{strength:g} * {path.name}" for path, strength in map(weighted, args.lora)]
        lines += more
    found = save(network, args.out, {"merged": " + ".join(recipe)}, force=args.force)
    print("\n".join(lines))
    print(written(args.out, found))
    return 0


def add_loras(network: Tensors, base: Path, words: list[str]) -> tuple[Tensors, list[str]]:
    """``network`` with the LoRAs of ``--lora``, and what they do to it."""
    from turbodiffusion.weights.adapted import Adapted
    from turbodiffusion.weights.detect import expert_of
    from turbodiffusion.weights.lora import open_lora

    expert = network.metadata.get("expert") or expert_of(base)
    pairs = [(open_lora(path, network.spec, expert), w) for path, w in map(weighted, words)]
    adapted = Adapted(network, pairs)
    return adapted, adapted.lines()


def weighted(word: str) -> tuple[Path, float]:
    """``FILE:0.8`` as a path and a strength; a colon that is part of a path stays in it.

    Raises:
        UsageError: the strength is no finite number.
    """
    path, colon, text = word.rpartition(":")
    if not colon or Path(word).exists():
        return Path(word), 1.0
    try:
        strength = float(text)
    except ValueError:
        return Path(word), 1.0  # such as C:\\lora.safetensors
    if not math.isfinite(strength):
        raise UsageError("merge-arguments", f"{text} is no strength of a LoRA.", "Use FILE:0.8.")
    return Path(path), strength


def written(path: Path, found: Description) -> str:
    """One line about a written checkpoint."""
    return (
        f"{path}: {found.card or found.kind}, {found.layout}, {found.tensors} tensors, "
        f"{path.stat().st_size / 1e6:.1f} MB"
    )
