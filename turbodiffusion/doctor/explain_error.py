"""Exceptions of our own commands, explained by the catalogue before they are printed."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from turbodiffusion.doctor.catalogue import OWN
from turbodiffusion.doctor.catalogue.entry import Entry, Fix
from turbodiffusion.doctor.explain import explain
from turbodiffusion.errors import CapacityError, SetupError, TurboDiffusionError, out_of_memory

_PACKAGE = str(Path(__file__).resolve().parent.parent)
_CAPACITY = {"CUDA-OOM", "CONV3D-MEMORY-REGRESSION", "HOST-OOM-KILLED", "WIN-PAGEFILE-TOO-SMALL",
             "DISK-FULL", "DISK-TOO-SMALL-FOR-FILE", "DISK-QUOTA"}  # fmt: skip
"""Failures that end with exit code 4; those of the environment end with 3, others with 1."""
_ENVIRONMENT = ("install", "import", "first-kernel")
_PASS_ON = {one.id for one in OWN if one.rank == 3}
"""Codes of our own behind which another program's words may say more."""
_LONGEST = 400


def recognised(error: BaseException) -> TurboDiffusionError | None:
    """The error to show in place of ``error``: the catalogue's headline with its fixes and the
    original words. An error of our own keeps its code and words; if it only passes on what
    another program said, the fixes of that are added. None if there is nothing to add.
    """
    if known := out_of_memory(error):
        return known
    if isinstance(error, TurboDiffusionError) and error.code not in _PASS_ON:
        return None
    found = explain(words(error)).findings
    entries = [one.entry for one in found if not one.entry.sign and not one.entry.quiet]
    if not entries or entries[0].own:
        return None
    entry = entries[0]
    if isinstance(error, TurboDiffusionError):
        return type(error)(error.code, error.message, f"{error.fix}\n  or: {_remedies(entry)}")
    return _kind(entry)(entry.id, f"{entry.title} {original(error)}", _remedies(entry))


def words(error: BaseException) -> str:
    """The error and those it came from, root first, as text to search.

    Lines of source are shown for other packages only: ours hold messages that nobody raised.
    """
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and len(chain) < 20:
        chain.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    lines = []
    for one in reversed(chain):
        for frame in traceback.extract_tb(one.__traceback__):
            ours = os.path.abspath(frame.filename).startswith(_PACKAGE)
            lines.append(f'File "{frame.filename}", in {frame.name}\n{"" if ours else frame.line}')
        lines += traceback.format_exception_only(type(one), one)
    return "\n".join(lines)


def original(error: BaseException) -> str:
    """What was raised, on one line, shortened."""
    said = " ".join("".join(traceback.format_exception_only(type(error), error)).split())
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]} …"


def _kind(entry: Entry) -> type[TurboDiffusionError]:
    if entry.id in _CAPACITY:
        return CapacityError
    return SetupError if entry.stage in _ENVIRONMENT else TurboDiffusionError


def _remedies(entry: Entry) -> str:
    """The fixes for this system, the commands for its shell."""
    shell = "powershell" if os.name == "nt" else "bash"
    here = places()
    said = [_remedy(fix, shell) for fix in entry.fixes if fix.where in here]
    said.append(f"More: turbodiffusion errors {entry.id}")
    return "\n  or: ".join(said[:-1]) + f"\n  {said[-1]}" if len(said) > 1 else said[0]


def _remedy(fix: Fix, shell: str) -> str:
    command = fix.command(shell) or (fix.powershell if fix.where == "WSL" else "")
    return f"{fix.says.rstrip('.')}: {command}" if command else fix.says


def places() -> set[str]:
    """Which of the catalogue's places this machine is; "" is everywhere."""
    if os.name == "nt":
        return {"", "Windows"}
    found = {"", "Linux"} if sys.platform == "linux" else {""}
    if os.path.exists("/proc/sys/fs/binfmt_misc/WSLInterop") or "WSL_DISTRO_NAME" in os.environ:
        found.add("WSL")
    if os.path.exists("/.dockerenv"):
        found.add("Docker")
    return found
