"""``turbodiffusion bugreport``: one Markdown block for a maintainer, without names and secrets."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to the main parser."""
    parser = subparsers.add_parser(
        "bugreport",
        help="print one Markdown block to paste into a report",
        description="Collects the doctor's report, versions and the end of a log. User names, home "
        "folders, tokens and keys are taken out; read it before you send it.",
    )
    parser.add_argument("--log", default="", metavar="FILE",
                        help="a log to add, - reads stdin; default: the set-up's own")  # fmt: skip
    parser.add_argument("--output", "-o", type=Path, help="write to a file instead of stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collect, redact, print."""
    from turbodiffusion.doctor import bugreport

    text = bugreport.build(args.log)
    if args.output:
        args.output.write_text(text + "\n", "utf-8")
        print(f"Written: {args.output}. Read it before you send it.", file=sys.stderr)
    else:
        print(text)
    return 0
