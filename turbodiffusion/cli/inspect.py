"""``turbodiffusion inspect FILE``: what a checkpoint is, from its header, in under a second."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from turbodiffusion.errors import WeightsError
from turbodiffusion.models.cards import CARDS
from turbodiffusion.weights.check import WORDS, require_kind, require_supported, some
from turbodiffusion.weights.detect import Description, config_line, describe
from turbodiffusion.weights.header import diffusers_components, read_header
from turbodiffusion.weights.identity import quick_hash


def add_parser(subparsers: Any) -> None:
    """Add the command to the main parser."""
    parser = subparsers.add_parser(
        "inspect",
        help="say what a checkpoint is, without loading it",
        description="Reads the header of a .safetensors or .pth file, a sharded folder or a "
        "diffusers folder and prints kind, model, layout and how to use it. No tensor is read.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="checkpoint file or folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the description of ``args.file``; 0 unless the file cannot be read."""
    components = diffusers_components(args.file)
    targets = components or {"": args.file}
    found = {name: describe(read_header(path)) for name, path in targets.items()}
    if args.json:
        tables = {name: as_table(one) for name, one in found.items()}
        print(json.dumps({"networks": tables} if components else tables[""], indent=2))
        return 0
    for name, one in found.items():
        if name:
            print(f"[{name}]")
        print("\n".join(f"{key:<14}{value}" for key, value in lines(one)))
    return 0


def problem(found: Description) -> str:
    """Why the file cannot be loaded as it is, or an empty string."""
    try:
        if found.kind in ("lora", "unknown"):
            require_kind(found, "dit")
        require_supported(found)
    except WeightsError as error:
        return f"{error.message} {error.fix}"
    if found.foreign:
        return f"asks for Python objects besides tensors (never created): {some(found.foreign)}"
    for names, what in ((found.missing, "missing"), (found.unexpected, "unexpected"),
                        (found.mismatched, "of another shape")):  # fmt: skip
        if names:
            return f"{len(names)} tensors {what}: {some(names)}"
    return ""


def usage(found: Description) -> str:
    """The command that uses this file."""
    if found.kind == "dit" and found.card:
        image = " --image FILE" if CARDS[found.card].task == "i2v" else ""
        path = f'"{found.path}"' if " " in str(found.path) else found.path
        return f'turbodiffusion generate "PROMPT"{image} --model {path}'
    if found.kind in ("vae", "text_encoder"):
        return "found by itself when it lies beside the DiT, in ./checkpoints or in the hub cache"
    return ""


def lines(found: Description) -> list[tuple[str, str]]:
    """Rows of the printed description; empty values are left out."""
    types = ", ".join(f"{count} × {name}" for name, count in found.dtypes.items())
    attention = {
        "sla": "SLA (has the linear-branch projection)",
        "dense": "dense only (no SLA projection)",
    }
    rows = [
        ("file", f"{found.path} ({found.container})"),
        ("kind", WORDS[found.kind].removeprefix("a ")),
        ("card", " or ".join(found.cards) or ("none fits" if found.config else "")),
        ("sizes", config_line(found.config)),
        ("layout", found.layout + (", int8 linears with 128 × 128 scales" * found.quantized)),
        ("attention", attention.get(found.attention, "")),
        ("expert", found.expert and f"{found.expert} noise (from the name, shapes are identical)"),
        ("tensors", f"{found.tensors} ({types})"),
        ("parameters", f"{found.parameters:,}".replace(",", " ")),
        (
            "size",
            f"{found.bytes / 1e9:.2f} GB" if found.bytes > 1e8 else f"{found.bytes / 1e6:.2f} MB",
        ),
        ("names", found.dialect),
        ("wrapped in", ", ".join(found.wrappers)),
        ("metadata", ", ".join(f"{k}={v[:60]}" for k, v in found.metadata.items())),
        ("fingerprint", quick_hash(found.path)[:16]),
        ("problem", problem(found)),
        ("use", "" if problem(found) else usage(found)),
    ]
    return [(key, value) for key, value in rows if value]


def as_table(found: Description) -> dict[str, Any]:
    """The description as plain JSON values."""
    table = dataclasses.asdict(found)
    table["path"] = str(found.path)
    table["complete"] = found.complete
    table["fingerprint"] = quick_hash(found.path)
    table["problem"] = problem(found)
    table["use"] = "" if problem(found) else usage(found)
    return table
