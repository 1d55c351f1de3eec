"""``turbodiffusion mini train | judge | sheet | world``: the embedded model's own commands."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbodiffusion.errors import UsageError

if TYPE_CHECKING:
    from turbodiffusion.mini.recipe import SizeRecipe


def add_parser(subparsers: Any) -> None:
    """Register ``mini`` and its four commands."""
    parser = subparsers.add_parser(
        "mini", help="the embedded model: train it, judge it, see its world",
        description="The embedded model: a small video model trained on a procedural world.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="mini_command", metavar="COMMAND", required=True)
    _add_train(commands.add_parser("train", help="train a stage from nothing, or continue it"))
    _add_judge(commands.add_parser("judge", help="measure how often videos show what prompts say"))
    _add_sheet(commands.add_parser("sheet", help="draw videos of held-out prompts on one picture"))
    commands.add_parser("world", help="print the world: values, formulas, vocabulary")


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", choices=("vae", "decoder", "teacher", "all"))
    parser.add_argument("--size", default="micro", help="micro (CPU, hours) or mini (GPU)")
    parser.add_argument("--out", type=Path, help="folder of states, logs and weights")
    parser.add_argument(
        "--run-minutes", type=_above_zero, help="pause after this long; run again to go on"
    )
    parser.add_argument(
        "--minutes", type=_above_zero, help="training time of the stage over all runs"
    )
    parser.add_argument("--steps", type=_count, help="steps of the stage over all runs")
    parser.add_argument("--batch", type=_count, help="clips in a step, for each process")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument("--init", type=Path, help="folder of weights that the teacher starts from")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)


def _add_judge(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--samples", type=_count, default=32, help="videos a row (default 32)")
    parser.add_argument("--objects", default="1", help="1, 2 or 1,2 (default 1)")
    parser.add_argument(
        "--rows", default="truth,vae,teacher", help="which rows, separated by commas"
    )
    parser.add_argument("--record", action="store_true", help="store the table in the report file")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def _add_sheet(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--out", type=Path, required=True, help="picture to write, .png or .jpg")
    parser.add_argument("--samples", type=_count, default=8, help="videos, one a row (default 8)")
    parser.add_argument("--objects", type=int, choices=(1, 2), default=1, help="in every prompt")


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Flags that choose the weights and the sampler."""
    parser.add_argument("--size", help="micro or mini; default: the default of generate")
    parser.add_argument("--weights", type=Path, help="folder with the weights; default: packaged")
    parser.add_argument("--batch", type=_count, default=8, help="videos made together (default 8)")
    parser.add_argument("--steps", type=_count, help="solver steps (default: the card's)")
    parser.add_argument("--guidance", type=float, help="default: the card's")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def _above_zero(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def run(args: argparse.Namespace) -> int:
    """Dispatch to one of the four."""
    commands = {"train": _train, "judge": _judge, "sheet": _sheet, "world": _world}
    return commands[args.mini_command](args)


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
    from turbodiffusion.pipeline.load import pick_device

    if args.device:
        pick_device(args.device)  # refuses what is not there in a sentence
    size = recipe(args.size)
    changes = {k: getattr(args, k) for k in ("minutes", "steps", "batch") if getattr(args, k)}
    stages = ("vae", "decoder", "teacher") if args.stage == "all" else (args.stage,)
    folder = args.out or Path("runs") / args.size
    worker = Worker.start(args.device, args.compile)
    for stage in stages:
        chosen = replace(size, **{stage: replace(getattr(size, stage), **changes)})
        if stage == "teacher":
            report = train_teacher(chosen, folder, worker, args.run_minutes, init=args.init)
        else:
            report = train_vae(chosen, folder, worker, args.run_minutes, stage=stage)
        if worker.rank == 0:
            print(json.dumps({"stage": stage, **report}))
        if not report["complete"]:
            if worker.rank == 0:
                print("Paused; the same command goes on from here.", file=sys.stderr)
            break
    worker.leave()
    return 0


def _size(args: argparse.Namespace) -> SizeRecipe:
    from turbodiffusion.mini.recipe import recipe
    from turbodiffusion.weights.find import default_name

    return recipe(args.size or default_name())


def _sampler(args: argparse.Namespace) -> dict[str, Any]:
    """The sampler's settings that were given."""
    values = {"steps": args.steps, "guidance": args.guidance}
    return {name: value for name, value in values.items() if value is not None}


def _judge(args: argparse.Namespace) -> int:
    from turbodiffusion.mini import evaluate
    from turbodiffusion.mini.export import size_name
    from turbodiffusion.mini.runtime import machine
    from turbodiffusion.mini.table import record, table

    # Everything is checked before the first row: a row may take an hour.
    rows = _listed(args.rows, evaluate.ROWS, "--rows")
    counts = [int(n) for n in _listed(args.objects, ("1", "2"), "--objects")]
    size = _size(args)
    whole = "teacher" in rows
    open_model = evaluate.open_pipeline if whole else evaluate.open_autoencoder
    pipe = open_model(size, args.weights, args.device)
    measured = []
    for name in rows:
        for objects in counts:
            for split in evaluate.SPLITS:
                row = evaluate.measure(
                    pipe, name, split, objects, args.samples, args.batch, **_sampler(args)
                )
                measured.append(row.as_json())
                print(f"{row.name}, {split}, {objects} object(s): done", file=sys.stderr)
    result = {
        "model": size_name(size), "weights": pipe.identity.as_dict() if pipe.identity else {},
        "machine": machine(pipe.device), "rows": measured,
    }  # fmt: skip
    if args.record:
        path = record(size, args.weights or evaluate.PACKAGED, result)
        print(f"Stored in {path}", file=sys.stderr)
    print(json.dumps(result, indent=1) if args.json else table(measured))
    return 0


def _listed(text: str, allowed: tuple[str, ...], flag: str) -> list[str]:
    """The words of a list with commas, each one of ``allowed``."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in allowed:
            raise UsageError(
                "mini-list",
                f"{flag} has {word!r}; it takes {', '.join(allowed)}, separated by commas.",
                f"For example: {flag} {','.join(allowed)}",
            )
    return words


def _sheet(args: argparse.Namespace) -> int:
    from turbodiffusion.mini.evaluate import open_pipeline
    from turbodiffusion.mini.sheet import draw_sheet

    if args.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UsageError(
            "mini-sheet-format",
            f"A sheet cannot be written as {args.out.name!r}; .png and .jpg can.",
            "Give --out a name such as sheet.png.",
        )
    pipe = open_pipeline(_size(args), args.weights, args.device)
    path, right = draw_sheet(
        pipe, args.out, args.samples, objects=args.objects, batch=args.batch,
        on_batch=lambda n: print(f"{n} video(s) made", file=sys.stderr), **_sampler(args),
    )  # fmt: skip
    shown = ", ".join(f"{name} {count}" for name, count in right.items())
    print(f"{path}  (right in {args.samples}: {shown})")
    return 0
