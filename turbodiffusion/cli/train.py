"""``turbodiffusion train STAGE``: one loop for every stage, on one process or under torchrun."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turbodiffusion.models.cards import ModelCard
    from turbodiffusion.train.config import TrainConfig
    from turbodiffusion.train.synthesis import Synthesis

STAGES = ("flow", "sla", "sla-flow", "rcm", "align", "match")
"""The stages of :mod:`turbodiffusion.train.stages`, which needs torch to be imported."""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    p = subparsers.add_parser(
        "train", help="train a network: one stage of the recipe, resumable, on any number of GPUs",
        description="Train one stage, or make what it is trained on. The same command goes on "
        "from where it was. On several GPUs: torchrun --nproc-per-node N -m turbodiffusion train "
        "STAGE ...",
    )  # fmt: skip
    stages = p.add_subparsers(dest="stage", metavar="STAGE", required=True)
    stages.add_parser("list", help="print the stages")
    for name in STAGES:
        _add_stage(stages.add_parser(name, help="a stage; see `turbodiffusion train list`"))
    _add_synthesize(
        stages.add_parser(
            "synthesize", help="make training data: latents of a teacher, as tar shards",
            description="Sample a teacher on many prompts and store its latents with their text "
            "embeddings as tar shards, to be trained on with --set data=FOLDER.",
        )
    )  # fmt: skip


def _add_stage(p: argparse.ArgumentParser) -> None:
    p.add_argument("--preset", default="mini", help="micro, mini, 1.3B or 14B (default mini)")
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


def _add_synthesize(p: argparse.ArgumentParser) -> None:
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt a line")
    what.add_argument("--world", type=int, metavar="N",
                      help="N captions of the embedded model's training world")  # fmt: skip
    what.add_argument("--negative-only", action="store_true",
                      help="only the negative prompt's embedding, for shards without")  # fmt: skip
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the shards")
    p.add_argument("--model", help="name or path of the teacher (default: the embedded one)")
    p.add_argument("--repeat", type=int, default=1, help="videos of each prompt (default 1)")
    p.add_argument("--samples-per-shard", type=int, default=256, help="(default 256)")
    p.add_argument("--batch", type=int, default=1, help="videos made together (default 1)")
    p.add_argument("--seed", type=int, default=0, help="of sample 0; they count up (default 0)")
    p.add_argument("--sigma-max", type=float, default=5000.0,
                   help="first noise level (default 5000)")  # fmt: skip
    p.add_argument("--steps", type=int, help="solver steps (default 100)")
    p.add_argument("--solver", choices=("euler", "unipc"), help="(default euler)")
    p.add_argument("--guidance", type=float, help="(default 5)")
    p.add_argument("--shift", type=float, help="noise schedule (default 3)")
    p.add_argument("--negative", help="prompt to steer away from, also stored for the training")
    p.add_argument("--frames", type=int, help="length in frames (default: the model's)")
    p.add_argument("--resolution", help="480p, 720p or WIDTHxHEIGHT (default: the model's)")
    p.add_argument("--aspect", help="16:9, 9:16, 4:3, 3:4 or 1:1")
    p.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    p.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(word) for word in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text} has a number below 1")
    return counts


def run(args: argparse.Namespace) -> int:
    """Train, say what would be trained, or make data."""
    if args.stage == "synthesize":
        return _synthesize(args)
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
    from turbodiffusion.train.presets import preset
    from turbodiffusion.train.stages import settings_of

    config = settings_of(args.stage, args.preset)
    config = change(config, {"sample_every": preset(args.preset, args.stage).sample_every})
    if args.config:
        config = change(config, read_file(args.config))
    if args.out:
        config = change(config, {"out": args.out})
    return change(config, assignments(args.changes))


def _train(args: argparse.Namespace, config: TrainConfig) -> int:
    import os
    import sys
    import warnings

    from turbodiffusion.errors import show_warning
    from turbodiffusion.pipeline.load import pick_device
    from turbodiffusion.train.run import train

    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        report = train(config, pick_device(args.device), quiet=args.json)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(report))
        if not report["complete"]:
            print("Paused; the same command goes on from here.", file=sys.stderr)
    return 0


def _synthesize(args: argparse.Namespace) -> int:
    import warnings

    from turbodiffusion.errors import show_warning
    from turbodiffusion.pipeline.load import load, pick_device
    from turbodiffusion.train.synthesis import require_space, require_teacher
    from turbodiffusion.train.synthesize import processes, synthesize, write_negative
    from turbodiffusion.weights.find import default_name, find

    rank, world = processes()
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        files = find(args.model or f"{default_name()}-teacher")
        if args.negative_only:
            print(write_negative(files, args.negative, args.out, pick_device(args.device)))
            return 0
        plan = synthesis(args, files.card)
        require_teacher(files.dit[""])
        require_space(files.card, plan, args.out)
        pipe = load(files, device=args.device or _local_device(), attention="dense")
        report = synthesize(pipe, plan, args.out, rank=rank, world=world, quiet=args.json)
    print(json.dumps({"model": files.card.name, **report}))
    return 0


def synthesis(args: argparse.Namespace, card: ModelCard) -> Synthesis:
    """What the flags ask of the teacher ``card``."""
    from turbodiffusion.pipeline.jobs import Job, request_of
    from turbodiffusion.train.synthesis import Synthesis, baseline_request, read_prompts

    prompts = read_prompts(args.prompts) if args.prompts else _world(args.world, args.seed)
    names = ("seed", "steps", "solver", "guidance", "shift", "negative", "frames", "resolution",
             "aspect")  # fmt: skip
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    request = baseline_request(request_of(Job({"prompt": prompts[0], **given}), card), card)
    return Synthesis(
        prompts, request, repeat=args.repeat, samples_per_shard=args.samples_per_shard,
        batch=args.batch, sigma_max=args.sigma_max,
    )  # fmt: skip


def _world(count: int, seed: int) -> tuple[str, ...]:
    """Captions as the embedded teacher was trained on."""
    import torch

    from turbodiffusion.errors import UsageError
    from turbodiffusion.mini.world import captions, sample_scenes

    if count < 1:
        raise UsageError("synthesis-setting", f"world must be at least 1, not {count}.",
                         "Use --world 1024.")  # fmt: skip
    scenes = sample_scenes(count, seed, split="train")
    return tuple(captions(scenes, torch.Generator().manual_seed(seed)))


def _local_device() -> str | None:
    """The GPU that torchrun means for this process."""
    import os

    import torch

    index = os.environ.get("LOCAL_RANK")
    return f"cuda:{index}" if index and torch.cuda.is_available() else None
