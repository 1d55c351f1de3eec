"""``turbodiffusion mini train | judge | world``: the embedded model's own commands."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Register ``mini`` and its three commands."""
    parser = subparsers.add_parser(
        "mini", help="the embedded model: train it, judge it, see its world",
        description="The embedded model: a small video model trained on a procedural world.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="mini_command", metavar="COMMAND", required=True)

    train = commands.add_parser("train", help="train a stage from nothing, or continue it")
    train.add_argument("stage", choices=("vae", "teacher", "all"))
    train.add_argument("--size", default="micro", help="micro (CPU, hours) or mini (GPU)")
    train.add_argument("--out", type=Path, help="folder of states, logs and weights")
    train.add_argument(
        "--run-minutes", type=float, help="pause after this long; run again to go on"
    )
    train.add_argument("--minutes", type=float, help="training time of the stage over all runs")
    train.add_argument("--steps", type=int, help="steps of the stage over all runs")
    train.add_argument("--batch", type=int, help="clips in a step, for each process")
    train.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    train.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)

    judge = commands.add_parser("judge", help="measure how often videos show what prompts say")
    judge.add_argument("--size", help="micro or mini; default: the default of generate")
    judge.add_argument("--weights", type=Path, help="folder with the weights; default: packaged")
    judge.add_argument("--samples", type=int, default=32, help="videos a row (default 32)")
    judge.add_argument("--objects", default="1", help="1, 2 or 1,2 (default 1)")
    judge.add_argument(
        "--rows", default="truth,vae,teacher", help="which rows, separated by commas"
    )
    judge.add_argument("--batch", type=int, default=8)
    judge.add_argument(
        "--steps", type=int, help="solver steps of the teacher (default: its card's)"
    )
    judge.add_argument("--guidance", type=float)
    judge.add_argument("--device")
    judge.add_argument("--record", action="store_true", help="store the table in the report file")
    judge.add_argument("--json", action="store_true")

    commands.add_parser("world", help="print the world: values, formulas, vocabulary")


def run(args: argparse.Namespace) -> int:
    """Dispatch to one of the three."""
    return {"train": _train, "judge": _judge, "world": _world}[args.mini_command](args)


def _world(args: argparse.Namespace) -> int:
    from turbodiffusion.mini.world import describe_world

    print(describe_world())
    return 0


def _train(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from turbodiffusion.mini.recipe import recipe
    from turbodiffusion.mini.runtime import Worker
    from turbodiffusion.mini.train_teacher import train_teacher
    from turbodiffusion.mini.train_vae import train_vae

    size = recipe(args.size)
    changes = {k: getattr(args, k) for k in ("minutes", "steps", "batch") if getattr(args, k)}
    stages = ("vae", "teacher") if args.stage == "all" else (args.stage,)
    folder = args.out or Path("runs") / args.size
    worker = Worker.start(args.device, args.compile)
    for stage in stages:
        chosen = replace(size, **{stage: replace(getattr(size, stage), **changes)})
        report = {"vae": train_vae, "teacher": train_teacher}[stage](
            chosen, folder, worker, args.run_minutes
        )
        if worker.rank == 0:
            print(json.dumps({"stage": stage, **report}))
        if not report["complete"]:
            print("Paused; the same command goes on from here.", file=sys.stderr)
            break
    worker.leave()
    return 0


def _judge(args: argparse.Namespace) -> int:
    from turbodiffusion.mini import evaluate
    from turbodiffusion.mini.export import update_report
    from turbodiffusion.mini.recipe import recipe
    from turbodiffusion.mini.runtime import machine
    from turbodiffusion.weights.find import default_name

    size_name = args.size or default_name()
    size = recipe(size_name)
    pipe = evaluate.open_pipeline(size, args.weights, args.device)
    settings = {"steps": args.steps, "guidance": args.guidance}
    rows = []
    for name in args.rows.split(","):
        for objects in (int(n) for n in args.objects.split(",")):
            for split in ("seen", "held_out"):
                row = evaluate.measure(
                    pipe, name, split, objects, args.samples, args.batch,
                    **{k: v for k, v in settings.items() if v is not None},
                )  # fmt: skip
                rows.append(row.as_json())
                print(f"{row.name}, {split}, {objects} object(s): done", file=sys.stderr)
    result = {"model": size_name, "rows": rows, "machine": machine(pipe.device)}
    if args.record:
        update_report(size, args.weights or evaluate.PACKAGED, quality=result)
    print(json.dumps(result, indent=1) if args.json else evaluate.table(rows))
    return 0
