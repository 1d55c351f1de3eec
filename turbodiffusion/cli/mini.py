"""``turbodiffusion mini train | judge | judge-i2v | sheet | world``: the embedded model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbodiffusion.cli import mini_images, mini_judge, mini_speed
from turbodiffusion.errors import UsageError

if TYPE_CHECKING:
    from turbodiffusion.mini.recipe import SizeRecipe
    from turbodiffusion.mini.runtime import Worker


STUDENT_STAGES = ("sla", "rcm", "merge", "follow", "turbo", "student")
STAGES = ("vae", "decoder", "teacher", *STUDENT_STAGES)
"""In the order of ``all``."""
IMAGE_STAGES = ("i2v", "i2v-rcm", "i2v-merge", "i2v-turbo", "i2v-student")
"""Of the size that has an image-to-video model. ``all`` leaves ``i2v-rcm`` out."""


def add_parser(subparsers: Any) -> None:
    """Register ``mini`` and its commands."""
    parser = subparsers.add_parser(
        "mini", help="the embedded model: train it, judge it, see its world",
        description="The embedded model: a small video model trained on a procedural world.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="mini_command", metavar="COMMAND", required=True)
    _add_train(commands.add_parser("train", help="train a stage from nothing, or continue it"))
    judge = commands.add_parser("judge", help="measure how often videos show what prompts say")
    _add_model(judge)
    mini_judge.add_arguments(judge)
    speed = commands.add_parser("speed", help="time teacher and student on this machine")
    mini_speed.add_arguments(speed)
    mini_images.add_arguments(
        commands.add_parser("judge-i2v", help="measure how videos follow image and text")
    )
    _add_sheet(commands.add_parser("sheet", help="draw videos of held-out prompts on one picture"))
    commands.add_parser("world", help="print the world: values, formulas, vocabulary")


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", choices=(*STAGES, *IMAGE_STAGES, "all"))
    parser.add_argument("--size", default="micro", help="micro (CPU, hours) or mini (GPU)")
    parser.add_argument("--out", type=Path, help="folder of states, logs and weights")
    parser.add_argument(
        "--run-minutes", type=above_zero, help="pause after this long; run again to go on"
    )
    parser.add_argument(
        "--minutes", type=above_zero, help="training time of the stage over all runs"
    )
    parser.add_argument("--steps", type=count, help="steps of the stage over all runs")
    parser.add_argument("--batch", type=count, help="clips in a step, for each process")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument("--init", type=Path, help="folder of weights that the teacher starts from")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help="a setting of sla, rcm, follow, turbo or i2v, as of `train --set`; of i2v-merge: "
        "high=2",
    )  # fmt: skip


def _add_sheet(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--out", type=Path, required=True, help="picture to write, .png or .jpg")
    parser.add_argument("--samples", type=count, default=8, help="videos, one a row (default 8)")
    parser.add_argument("--objects", type=int, choices=(1, 2), default=1, help="in every prompt")
    parser.add_argument("--row", help="of `mini judge`, such as teacher (default: what ships)")


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Flags that choose the weights and the sampler."""
    parser.add_argument("--size", help="micro or mini; default: the default of generate")
    parser.add_argument("--weights", type=Path, help="folder with the weights; default: packaged")
    parser.add_argument(
        "--batch", type=count, help="videos made together (default 8; judge: 128 on a GPU)"
    )
    parser.add_argument("--steps", type=count, help="solver steps (default: the card's)")
    parser.add_argument("--guidance", type=float, help="default: the card's")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")


def count(text: str) -> int:
    """A whole number from 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def count_or_zero(text: str) -> int:
    """A whole number from 0, for argparse."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is not 0 or more")
    return value


def above_zero(text: str) -> float:
    """A number above 0, for argparse."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def run(args: argparse.Namespace) -> int:
    """Dispatch to one of them."""
    commands = {
        "train": _train, "judge": mini_judge.run, "judge-i2v": mini_images.run,
        "speed": mini_speed.run, "sheet": _sheet, "world": _world,
    }  # fmt: skip
    return commands[args.mini_command](args)


def _world(args: argparse.Namespace) -> int:
    from turbodiffusion.mini.world import describe_world

    print(describe_world())
    return 0


def _train(args: argparse.Namespace) -> int:
    from turbodiffusion.mini.recipe import recipe
    from turbodiffusion.mini.runtime import Worker
    from turbodiffusion.pipeline.load import pick_device

    if args.device:
        pick_device(args.device)  # refuses what is not there in a sentence
    size = recipe(args.size)
    stages = _all_stages(size) if args.stage == "all" else (args.stage,)
    folder = args.out or Path("runs") / args.size
    worker = Worker.start(args.device, args.compile)
    for stage in stages:
        report = _run_stage(args, stage, size, folder, worker)
        if worker.rank == 0:
            print(json.dumps({"stage": stage, **report}))
        if not report["complete"]:
            if worker.rank == 0:
                print("Paused; the same command goes on from here.", file=sys.stderr)
            break
    worker.leave()
    if args.stage == "all" and report["complete"] and worker.rank == 0:
        _print_quality(size, folder, args.device)
    return 0


def _all_stages(size: SizeRecipe) -> tuple[str, ...]:
    from turbodiffusion.mini.export import size_name
    from turbodiffusion.models.cards import CARDS

    if f"{size_name(size)}-i2v" not in CARDS:
        return STAGES
    return (*STAGES, *(stage for stage in IMAGE_STAGES if stage != "i2v-rcm"))


def _print_quality(size: SizeRecipe, folder: Path, device: str | None) -> None:
    """The table of a finished recipe, on the default number of prompts."""
    from turbodiffusion.mini.quality import Options, measure_quality
    from turbodiffusion.mini.table import tables

    print("Judging every stage; `mini judge` takes more prompts.", file=sys.stderr)
    options = Options(folder=folder, device=device)
    result, _ = measure_quality(size, options, lambda text: print(text, file=sys.stderr))
    print(tables(result))


def _run_stage(
    args: argparse.Namespace, stage: str, size: SizeRecipe, folder: Path, worker: Worker
) -> dict[str, Any]:
    """Run or continue one stage; its report."""
    from dataclasses import replace

    budget = {k: getattr(args, k) for k in ("minutes", "steps", "batch") if getattr(args, k)}
    if stage in IMAGE_STAGES:
        return _run_images(args, stage, size, folder, worker, budget)
    if stage in STUDENT_STAGES:
        from turbodiffusion.mini.students import make_merged, make_student, train_student
        from turbodiffusion.train.config import assignments

        if stage in ("merge", "student"):
            return (make_merged if stage == "merge" else make_student)(size, folder)
        if "batch" in budget:
            budget["micro_batch"] = budget["batch"]
        changes = {**budget, **assignments(args.changes)}
        return train_student(size, folder, worker, stage, args.run_minutes, changes)
    chosen = replace(size, **{stage: replace(getattr(size, stage), **budget)})
    if stage == "teacher":
        from turbodiffusion.mini.train_teacher import train_teacher

        return train_teacher(chosen, folder, worker, args.run_minutes, init=args.init)
    from turbodiffusion.mini.train_vae import train_vae

    return train_vae(chosen, folder, worker, args.run_minutes, stage=stage)


def _run_images(
    args: argparse.Namespace, stage: str, size: SizeRecipe, folder: Path, worker: Worker,
    budget: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    from turbodiffusion.mini import i2v
    from turbodiffusion.train.config import assignments

    if stage == "i2v-merge":
        return i2v.make_i2v_merged(size, folder, assignments(args.changes))
    if stage == "i2v-student":
        return i2v.make_i2v_students(size, folder)
    if "batch" in budget:
        budget["micro_batch"] = budget["batch"]
    changes = {**budget, **assignments(args.changes)}
    parts = {"i2v": i2v.PARTS, "i2v-rcm": i2v.DISTILLED, "i2v-turbo": i2v.ALIGNED}[stage]
    return i2v.train_i2v(size, folder, worker, args.run_minutes, changes, parts=parts)


def size_of(args: argparse.Namespace) -> SizeRecipe:
    """The recipe of ``--size``; default: what ``generate`` runs."""
    from turbodiffusion.mini.recipe import recipe
    from turbodiffusion.weights.find import default_name

    return recipe(args.size or default_name())


def _sampler(args: argparse.Namespace) -> dict[str, Any]:
    """The sampler's settings that were given."""
    values = {"steps": args.steps, "guidance": args.guidance}
    return {name: value for name, value in values.items() if value is not None}


def listed(text: str, allowed: tuple[str, ...], flag: str) -> list[str]:
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


def check_picture(path: Path, flag: str) -> None:
    """Refuse a sheet in a format that is no picture, before hours of work."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UsageError(
            "mini-sheet-format",
            f"A sheet cannot be written as {path.name!r}; .png and .jpg can.",
            f"Give {flag} a name such as sheet.png.",
        )


def _sheet(args: argparse.Namespace) -> int:
    from turbodiffusion.mini.networks import open_row
    from turbodiffusion.mini.rows import BY_NAME
    from turbodiffusion.mini.sheet import draw_sheet

    check_picture(args.out, "--out")
    drawn = tuple(name for name, row in BY_NAME.items() if row.part)
    if args.row:
        listed(args.row, drawn, "--row")
    pipe = open_row(size_of(args), args.weights, args.device, args.row)
    path, right = draw_sheet(
        pipe, args.out, args.samples, objects=args.objects, batch=args.batch or 8,
        on_batch=lambda n: print(f"{n} video(s) made", file=sys.stderr), **_sampler(args),
    )  # fmt: skip
    shown = ", ".join(f"{name} {count}" for name, count in right.items())
    print(f"{path}  (right in {args.samples}: {shown})")
    return 0
