"""``turbodiffusion mini judge``: the quality table of the embedded model and its stages."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbodiffusion.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from turbodiffusion.mini.recipe import SizeRecipe

    Examples = dict[str, dict[str, np.ndarray]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``mini judge``, besides those that choose weights and device."""
    from turbodiffusion.cli.mini import above_zero, count, count_or_zero

    parser.add_argument(
        "--rows", default="available", metavar="NAMES",
        help="rows separated by commas, all, or available: those whose files are there (default)",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=count, default=32,
        help="prompts of each kind: seen or held-out, times --objects (default 32)",
    )  # fmt: skip
    parser.add_argument("--objects", default="1", help="1, 2 or 1,2 in a prompt (default 1)")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE",
        help="judge these prompts, one a line, instead of the world's",
    )  # fmt: skip
    parser.add_argument(
        "--real",
        type=count_or_zero,
        help="rendered clips that distributions are compared with (default 4096 on a GPU, 256 on a "
        "CPU; 0: none)",
    )
    parser.add_argument(
        "--repeated", type=count_or_zero,
        help="prompts made from 8 noises, for the diversity (default: one for 64 videos of a row)",
    )  # fmt: skip
    parser.add_argument("--workers", type=count, help="judging processes (default: the cores)")
    parser.add_argument(
        "--minutes", type=above_zero,
        help="start no further batch after this long; every row then has the same fewer prompts",
    )  # fmt: skip
    parser.add_argument("--topk", type=float, help="kept share of sparse rows (default: card's)")
    parser.add_argument(
        "--gates", action="store_true",
        help="check the least quality to ship; exit code 1 where one is missed",
    )  # fmt: skip
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE",
        help="draw held-out prompts through all rows, .png or .jpg",
    )  # fmt: skip
    parser.add_argument("--record", action="store_true", help="store the table in the report file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="also write the result as JSON to a file"
    )
    parser.add_argument(
        "--load", type=Path, metavar="FILE",
        help="print, check or record a result that --save wrote, measuring nothing",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Measure, print, and check the gates where that is asked."""
    from turbodiffusion.cli.mini import check_picture, size_of
    from turbodiffusion.mini import gates
    from turbodiffusion.mini.export import PACKAGED
    from turbodiffusion.mini.report import record
    from turbodiffusion.mini.table import tables

    if args.sheet:
        check_picture(args.sheet, "--sheet")
    size, examples = size_of(args), None
    if args.load:
        result = _load(args.load)
    else:
        result, examples = _measure(args, size)
    found = gates.gates(result) if args.gates else []
    if args.gates:
        result["gates"] = gates.as_json(found)
    if args.save:
        args.save.parent.mkdir(parents=True, exist_ok=True)
        args.save.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if args.record:
        print(f"Stored in {record(size, args.weights or PACKAGED, result)}", file=sys.stderr)
    for one in result.get("not_judged", ()):
        print(f"not judged: {one['prompt']!r} ({one['reason']})", file=sys.stderr)
    print(json.dumps(result, indent=1) if args.json else tables(result))
    if found and not args.json:
        print("\n" + gates.report(found))
    if args.sheet:
        _draw(args, size, result, examples)
    return 1 if any(gate.holds is False for gate in found) else 0


def _measure(args: argparse.Namespace, size: SizeRecipe) -> tuple[dict[str, Any], Examples]:
    """Run the rows; also returns the clips for a sheet."""
    from turbodiffusion.cli.mini import listed
    from turbodiffusion.mini.quality import Options, measure_quality

    # Everything is checked before the first row: a row may take an hour.
    objects = [int(n) for n in listed(args.objects, ("1", "2"), "--objects")]
    options = Options(
        folder=args.weights, device=args.device, rows=[w.strip() for w in args.rows.split(",")],
        samples=args.samples, objects=objects, prompts=_lines(args.prompts), batch=args.batch,
        real=args.real, repeated=args.repeated, workers=args.workers, minutes=args.minutes,
        topk=args.topk, steps=args.steps, guidance=args.guidance,
    )  # fmt: skip
    result, evaluation = measure_quality(size, options, _say)
    return result, evaluation.examples


def _draw(
    args: argparse.Namespace, size: SizeRecipe, result: dict[str, Any], examples: Examples | None
) -> None:
    """Draw the sheet. A loaded result has no clips: one prompt of each kind is made again, from the
    same noise."""
    from turbodiffusion.mini.quality import Options, measure_quality
    from turbodiffusion.mini.rows import ROWS
    from turbodiffusion.mini.sheet import draw_rows

    if examples is None:
        names = {row["row"] for row in result["rows"]}
        again = Options(
            folder=args.weights, device=args.device, samples=1, batch=args.batch, real=0,
            rows=[row.name for row in ROWS if row.shown in names], repeated=0, workers=1,
            objects=sorted({row["objects"] for row in result["rows"]}),
        )  # fmt: skip
        examples = measure_quality(size, again, _say)[1].examples
    _say(f"Drawn: {draw_rows(examples, result, args.sheet)}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _load(path: Path) -> dict[str, Any]:
    """A result that ``--save`` wrote."""
    try:
        result = json.loads(path.read_text("utf-8"))
        if not isinstance(result, dict) or not {"rows", "whole", "weights"} <= result.keys():
            raise ValueError("no rows in it")
    except (OSError, ValueError) as error:
        raise UsageError(
            "mini-result",
            f"{path} is no result of `mini judge --save` ({error}).",
            "Give the file that --save wrote.",
        ) from error
    return dict(result)


def _lines(path: Path | None) -> list[str] | None:
    """The prompts of a file, one a line, without empty lines; None without a file."""
    if path is None:
        return None
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "mini-prompts",
            f"The prompts in {path} cannot be read ({error}).",
            "Give a text file in UTF-8 with one prompt a line.",
        ) from error
    return [line.strip() for line in lines if line.strip()]
