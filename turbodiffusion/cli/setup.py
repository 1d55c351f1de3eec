"""``turbodiffusion setup``: make, repair or renew the environment; wheels only, with a way back."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to the main parser."""
    parser = subparsers.add_parser(
        "setup",
        help="make or repair the environment: torch for this machine, and everything else",
        description="Chooses torch by GPU, driver and system, installs it and the pinned packages, "
        "tries them by running, and undoes a change that fails. Nothing is compiled.",
    )
    parser.add_argument("--venv", default="", metavar="P", help="folder of the environment")
    parser.add_argument(
        "--torch",
        default="",
        metavar="TAG",
        help="cpu, cu126, cu128, cu129, cu130 or cu132 instead of the machine's choice",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--fix",
        nargs="?",
        const="",
        metavar="ID",
        help="repair what doctor complains about, or only what this check does",
    )
    parser.add_argument("--wsl", action="store_true", help="the steps to a GPU inside WSL")
    parser.add_argument("--docker", action="store_true", help="write a Dockerfile")
    parser.add_argument(
        "--clean", action="store_true", help="a fresh environment; compiled kernels are removed"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Hand the request to the room that does it."""
    from turbodiffusion.doctor import clean, docker, setup, verdict, wsl
    from turbodiffusion.errors import UsageError

    if sum([args.wsl, args.docker, args.clean, args.fix is not None]) > 1:
        raise UsageError(
            "setup-flags",
            "--fix, --wsl, --docker and --clean are different things.",
            "Use one at a time.",
        )
    if args.wsl:
        return wsl.run(print)
    tag = setup.require_tag(args.torch)
    if args.docker:
        return docker.run(tag, Path.cwd(), args.dry_run, _agree(args.yes), print)
    options = setup.Options(args.venv, tag, args.dry_run, args.clean)
    work = setup.Setup(options, _say, _agree(args.yes))
    if args.clean:
        return clean.run(work)
    if args.fix is not None:
        return work.fix(verdict.wanted([args.fix] if args.fix else []))
    return work.run()


def _say(text: str) -> None:
    print(text, flush=True)


def _agree(yes: bool) -> Any:
    """A question on the terminal; without one only --yes answers."""

    def ask(question: str) -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            print(f"{question} There is no terminal to answer on; --yes does.")
            return False
        try:
            return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            return False

    return ask
