"""Errors that a user can act on.

Every error of the package carries three things: a stable ``code`` (kebab case, the room first),
a ``message`` that names the offending value, and a ``fix`` that says what to do about it. The
command line prints the three on stderr and exits with ``exit_code``.
"""

from __future__ import annotations


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
