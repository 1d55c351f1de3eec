"""The ``turbodiffusion`` command: finds the command's file and turns errors into exit codes."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from turbodiffusion import __version__
from turbodiffusion.errors import CapacityError, TurboDiffusionError

COMMANDS = {
    "generate": "make a video from a prompt",
    "info": "print the settings stored in a video or picture",
    "models": "list models, their size, and whether they are here",
    "inspect": "say what a checkpoint file is, without loading it",
    "convert": "rewrite a checkpoint as safetensors, or back to the released layout",
    "mini": "the embedded model: train it, judge it, see its world",
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
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    named = next((w for w in words if w in COMMANDS), None)
    parser = build_parser(named or "")
    args = parser.parse_args(words)
    if not args.command:
        parser.print_help()
        return 0
    try:
        return int(import_module(f"turbodiffusion.cli.{args.command}").run(args) or 0)
    except TurboDiffusionError as error:
        return _report(error, debug)
    except KeyboardInterrupt:
        print("\nInterrupted. Finished videos are kept.", file=sys.stderr)
        return 130
    except Exception as error:
        known = _out_of_memory(error)
        if known is None:
            traceback.print_exc()
            return 1
        return _report(known, debug)


def _report(error: TurboDiffusionError, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error [{error.code}]: {error.message}\n  fix: {error.fix}", file=sys.stderr)
    return error.exit_code


def _out_of_memory(error: Exception) -> CapacityError | None:
    """torch's out-of-memory errors, which are no class of their own on the CPU."""
    text = str(error)
    gpu = type(error).__name__ == "OutOfMemoryError"
    if not (gpu or isinstance(error, MemoryError) or "can't allocate memory" in text):
        return None
    where = "The GPU" if gpu else "The computer"
    return CapacityError(
        "memory-exhausted",
        f"{where} ran out of memory: {text.splitlines()[0] if text else 'no details'}.",
        "Use a smaller --resolution or fewer --frames, or a quantised checkpoint.",
    )


if __name__ == "__main__":
    sys.exit(main())
