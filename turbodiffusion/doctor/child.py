"""Run our own small programs in child processes that cannot hurt or hold up the report.

A child prints one JSON object on its last line. Whatever else happens (a crash, a hang, a message
of the loader) becomes ``{"error": sentence}``. Children run side by side.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "children"
VARIABLES = {"PYTHONUTF8": "1", "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
LATE = "It did not answer in time."


@dataclass(frozen=True)
class Child:
    """A program of ``children/`` and how to start it.

    Args:
        script: its file name without ``.py``, or the path of a program elsewhere.
        arguments: words after it.
        limit: seconds after which it is ended.
        variables: added to the environment.
    """

    script: str | Path
    arguments: tuple[str, ...] = ()
    limit: float = 9.0
    variables: Mapping[str, str] = field(default_factory=dict)


def run(python: str, child: Child) -> dict[str, Any]:
    """The child's answer, or ``{"error": …}``; ``late`` is true when it was ended."""
    script = child.script if isinstance(child.script, Path) else FOLDER / f"{child.script}.py"
    command = [python, str(script), *child.arguments]
    options: dict[str, Any] = {} if os.name == "nt" else {"start_new_session": True}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **VARIABLES, **child.variables},
            **options,
        )
    except OSError as error:
        return {"error": f"{python} cannot be started ({error.strerror})."}
    try:
        out, said = process.communicate(timeout=child.limit)
    except subprocess.TimeoutExpired:
        _end(process)
        return {"error": LATE, "late": True}
    except BaseException:
        _end(process)
        raise
    try:
        answer = json.loads(out.strip().splitlines()[-1])
        assert isinstance(answer, dict)
        return answer
    except (ValueError, IndexError, AssertionError):
        return {"error": _reason(process.returncode, said)}


def run_all(python: str, children: Mapping[str, Child]) -> dict[str, dict[str, Any]]:
    """The answers of several children, which run at the same time."""
    if not children:
        return {}
    with ThreadPoolExecutor(len(children)) as pool:
        futures = {name: pool.submit(run, python, one) for name, one in children.items()}
        return {name: future.result() for name, future in futures.items()}


def _end(process: subprocess.Popen[str]) -> None:
    """End the child and, where the system has process groups, what it started."""
    try:
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        process.kill()
    process.wait()


def _reason(code: int, said: str) -> str:
    """Why a child gave no answer: the signal that ended it, or the last line it wrote."""
    if code < 0:
        return f"It crashed ({signal.Signals(-code).name})."
    if os.name == "nt" and code & 0xC0000000 == 0xC0000000:
        return f"It crashed (0x{code & 0xFFFFFFFF:08X})."
    return last_line(said) or f"It ended with status {code} and said nothing."


def last_line(text: Sequence[str] | str, limit: int = 300) -> str:
    """The last line that is not empty, cut to a length that fits into a report."""
    lines = [w for w in (text.splitlines() if isinstance(text, str) else text) if w.strip()]
    return lines[-1].strip()[:limit] if lines else ""
