"""``turbodiffusion errors [ID]``: what a failure means and what removes it."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to the main parser."""
    parser = subparsers.add_parser(
        "errors",
        help="list the known failures, or explain one",
        description="Lists every failure that this program knows, its own and those of drivers, "
        "torch, Triton, pip and the hub. With an ID, says what it means and what removes it. "
        "`turbodiffusion doctor --explain FILE` finds them in a log.",
    )
    parser.add_argument("id", nargs="?", metavar="ID", help="such as CUDA-OOM, in any case")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one entry or the list."""
    from turbodiffusion.doctor import catalogue, explain_page

    if args.id:
        one = catalogue.entry(args.id)
        print(json.dumps(one.as_json(), indent=2) if args.json else explain_page.entry_text(one))
        return 0
    if args.json:
        every = (*catalogue.FAILURES, *catalogue.OWN)
        print(json.dumps([one.as_json() for one in every], indent=2))
        return 0
    print(explain_page.list_text())
    return 0
