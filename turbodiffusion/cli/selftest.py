"""``turbodiffusion selftest``: checks, operators, and a judged video of the embedded model."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to the main parser."""
    parser = subparsers.add_parser(
        "selftest",
        help="try everything from the driver to a video on this machine",
        description="Runs the doctor and every operator against its definition; with --video also "
        "makes a clip with the embedded model and looks at it.",
    )
    parser.add_argument("--video", action="store_true", help="make and judge a clip as well")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Hand over to the doctor's room."""
    from turbodiffusion.doctor import selftest

    return selftest.run(args.video, lambda text: print(text, flush=True))
