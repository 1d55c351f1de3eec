"""Errors that a user can act on.

Every error of the package carries three things: a stable ``code`` (kebab case, the room first),
a ``message`` that names the offending value, and a ``fix`` that says what to do about it. The
command line prints the three on stderr and exits with ``exit_code``.
"""

from __future__ import annotations

import io
import os
import select
import sys
import traceback
from collections.abc import Callable
from typing import Any


class TurboDiffusionError(Exception):
    """Base of all errors raised on purpose.

    Args:
        code: stable identifier such as ``weights-truncated``.
        message: one sentence with the value that is wrong and what was allowed.
        fix: one sentence, or one command, that removes the cause.
    """

    exit_code = 1

    def __init__(self, code: str, message: str, fix: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fix = fix

    def as_json(self) -> dict[str, str]:
        """The three, for machine-readable output."""
        return {"code": self.code, "message": self.message, "fix": self.fix}

    def __str__(self) -> str:
        return f"[{self.code}] {self.message} {self.fix}"


class UsageError(TurboDiffusionError):
    """A flag, prompt, size or frame count that cannot be used (exit 2)."""

    exit_code = 2


class SetupError(TurboDiffusionError):
    """The environment lacks something: a package, a device, a driver (exit 3)."""

    exit_code = 3


class CapacityError(TurboDiffusionError):
    """Out of memory or disk, found beforehand or on the way (exit 4)."""

    exit_code = 4


class WeightsError(TurboDiffusionError):
    """A checkpoint that is missing, damaged, or not what it was given as."""


class MediaError(TurboDiffusionError):
    """An image or video that cannot be read or written."""


class Stopped(TurboDiffusionError):
    """A run that its caller stopped through the step callback or Ctrl-C (exit 130)."""

    exit_code = 130

    def __init__(self, message: str = "The run was stopped before it was complete.") -> None:
        super().__init__("run-stopped", message, "Start it again; finished videos are kept.")


def out_of_memory(error: BaseException) -> CapacityError | None:
    """The error to show for a failed allocation, which torch has no class of its own for on the
    CPU; None for any other failure."""
    text = str(error)
    gpu = type(error).__name__ == "OutOfMemoryError" or "_ALLOC_FAILED" in text
    cpu = isinstance(error, MemoryError) or any(words in text for words in _CPU_ALLOCATION)
    if not (gpu or cpu) or not isinstance(error, MemoryError | RuntimeError):
        return None
    where = "The GPU" if gpu else "The computer"
    return CapacityError(
        "memory-exhausted",
        f"{where} ran out of memory: {text.splitlines()[0].strip() if text else 'no details'}.",
        "Use a smaller --resolution or fewer --frames, or a quantised checkpoint.",
    )


_CPU_ALLOCATION = ("can't allocate memory", "not enough memory: you tried to allocate")


def run_guarded(
    run: Callable[[], int | None],
    *,
    debug: bool = False,
    recognise: Callable[[BaseException], TurboDiffusionError | None] = out_of_memory,
) -> int:
    """Run a command to its exit code; errors are printed on stderr with their fix.

    Args:
        run: the command; None counts as 0.
        debug: add the traceback of errors that are otherwise explained in two lines.
        recognise: the error to show in place of one, or None to show that itself.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that cannot show a name must not crash
            stream.reconfigure(errors="backslashreplace")
    try:
        return int(run() or 0)
    except KeyboardInterrupt:
        print("\nInterrupted. Finished videos are kept.", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            return 0
        known = recognise(error) or (error if isinstance(error, TurboDiffusionError) else None)
        if debug or known is None:
            traceback.print_exc()
        known = known or _unexpected(error)
        print(describe(known), file=sys.stderr)
        return known.exit_code


def _reader_left() -> bool:
    """Whether stdout goes to a program that has read enough, such as ``head``. What is still to be
    written then goes nowhere, or Python would complain at its end."""
    if not hasattr(select, "poll"):  # Windows, where such a pipe has no error of its own
        return False
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except (OSError, ValueError):  # stdout is no file
        return False
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _unexpected(error: BaseException) -> TurboDiffusionError:
    return TurboDiffusionError(
        "internal-error",
        f"The command met an unexpected {type(error).__name__}; the lines above say where.",
        "Please report it: `turbodiffusion bugreport` collects what is needed.",
    )


def describe(error: TurboDiffusionError) -> str:
    """Code, sentence and fix as the command line shows them."""
    return f"error [{error.code}]: {error.message}\n  fix: {error.fix}"


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """One line on stderr instead of Python's two; to be set as ``warnings.showwarning``."""
    print(f"warning: {message}", file=sys.stderr)
