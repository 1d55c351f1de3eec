"""The ``turbodiffusion`` command: finds the command's file and turns errors into exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from turbodiffusion import __version__
from turbodiffusion.errors import TurboDiffusionError, run_guarded

COMMANDS = {
    "generate": "make a video from a prompt",
    "info": "print the settings stored in a video or picture",
    "models": "list models, their size, and whether they are here",
    "inspect": "say what a checkpoint file is, without loading it",
    "download": "fetch a model and what it needs from the Hugging Face hub",
    "plan": "say whether a video fits this machine, and how long it will take",
    "monitor": "show what the GPUs are doing, live",
    "convert": "rewrite a checkpoint as safetensors, or back to the released layout",
    "merge": "add what another training changed to a checkpoint, or LoRAs",
    "quantize": "make the linears of a checkpoint int8",
    "export": "make a file from a training run: average, merge, int8 in one go",
    "train": "train a network: one stage of the recipe, resumable, on any number of GPUs",
    "mini": "the embedded model: train it, judge it, see its world",
    "doctor": "check this machine and print the command for whatever is wrong",
    "errors": "list the known failures, or explain one",
    "bugreport": "print one Markdown block to paste into a report, without names and secrets",
    "selftest": "try everything from the driver to a video on this machine",
    "setup": "make or repair the environment: torch for this machine, and everything else",
    "bench": "measure operators against the machine's ceilings and their rivals",
}
"""Command → help. Each lives in a module of the same name with ``add_parser`` and ``run``."""


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser; with ``only`` just that command's module is imported: start-up stays short."""
    parser = argparse.ArgumentParser(
        prog="turbodiffusion",
        description="Video from a prompt in a few network calls.",
        epilog="turbodiffusion COMMAND --help explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"turbodiffusion {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in COMMANDS.items():
        if only in (None, name):
            import_module(f"turbodiffusion.cli.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (see :mod:`turbodiffusion.errors`)."""
    # Read when torch is loaded: otherwise its threads on a CPU spin after every operation, which
    # beside other programs makes a network call five to ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    named = next((w for w in words if w in COMMANDS), None)
    parser = build_parser(named or "")
    args = parser.parse_args(words)
    if not args.command:
        parser.print_help()
        return 0
    name = f"turbodiffusion.cli.{args.command}"
    return run_guarded(
        lambda: import_module(name).run(args), debug=debug, recognise=_from_catalogue
    )


def _from_catalogue(error: BaseException) -> TurboDiffusionError | None:
    """The catalogue is loaded only when something has failed."""
    from turbodiffusion.doctor.explain_error import recognised

    return recognised(error)


if __name__ == "__main__":
    sys.exit(main())
