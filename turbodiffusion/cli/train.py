"""``turbodiffusion train STAGE``: one loop for every stage, on one process or under torchrun."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turbodiffusion.train.config import TrainConfig


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    p = subparsers.add_parser(
        "train", help="train a network: one stage of the recipe, resumable, on any number of GPUs",
        description="Train one stage. The same command goes on from the last checkpoint. On "
        "several GPUs: torchrun --nproc-per-node N -m turbodiffusion train STAGE ...",
    )  # fmt: skip
    p.add_argument("stage", help="flow, sla, ...; `list` prints them")
    p.add_argument("--preset", default="mini", help="mini, 1.3B or 14B (default mini)")
    p.add_argument("--config", type=Path, metavar="FILE", help="JSON or TOML over the preset")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
                   help="one setting, such as optim.lr=1e-5; may be repeated")  # fmt: skip
    p.add_argument("--out", help="folder of checkpoints, metrics and samples")
    p.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    p.add_argument("--show", action="store_true", help="print the settings and stop")
    p.add_argument("--dry-run", action="store_true",
                   help="print groups, shardings and memory; nothing is loaded")  # fmt: skip
    p.add_argument("--gpus", type=_counts, default=(8, 32, 64), metavar="N,N",
                   help="numbers of GPUs of the dry run (default 8,32,64)")  # fmt: skip
    p.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(word) for word in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text} has a number below 1")
    return counts


def run(args: argparse.Namespace) -> int:
    """Train, or say what would be trained."""
    from turbodiffusion.train.stages import STAGES

    if args.stage == "list":
        for name, text in STAGES.items():
            print(f"{name:<10}{text}")
        return 0
    config = settings(args)
    if args.show:
        print(json.dumps(config.as_json(), indent=1))
        return 0
    if args.dry_run:
        from turbodiffusion.train.dry_run import dry_run, lines

        found = dry_run(config, args.gpus)
        print(json.dumps(found, indent=1) if args.json else "\n".join(lines(found)))
        return 0
    return _train(args, config)


def settings(args: argparse.Namespace) -> TrainConfig:
    """Preset, then file, then --out, then --set."""
    from turbodiffusion.train.config import assignments, change, read_file
    from turbodiffusion.train.stages import settings_of

    config = settings_of(args.stage, args.preset)
    if args.config:
        config = change(config, read_file(args.config))
    if args.out:
        config = change(config, {"out": args.out})
    return change(config, assignments(args.changes))


def _train(args: argparse.Namespace, config: TrainConfig) -> int:
    import os
    import sys

    from turbodiffusion.pipeline.load import pick_device
    from turbodiffusion.train.run import train

    report = train(config, pick_device(args.device), quiet=args.json)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(report))
        if not report["complete"]:
            print("Paused; the same command goes on from here.", file=sys.stderr)
    return 0
