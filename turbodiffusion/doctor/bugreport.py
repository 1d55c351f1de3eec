"""``turbodiffusion bugreport``: one Markdown block with what a maintainer needs, nothing private.

The doctor's report, versions, the variables that matter, what the catalogue says about the log
that was given, and its end. Everything passes the redactor before anything is printed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from turbodiffusion import __version__
from turbodiffusion.doctor import readings, redact, show
from turbodiffusion.doctor.facts import Facts
from turbodiffusion.doctor.readings import packages
from turbodiffusion.doctor.readings.interpreter import Target, find_target
from turbodiffusion.doctor.verdict import Verdict, judge
from turbodiffusion.errors import UsageError

TAIL = 80  # lines of a log

RELEVANT = (
    "torch triton triton-windows numpy transformers tokenizers safetensors av pillow diffusers "
    "huggingface-hub hf-xet ftfy pip"
)


def build(log: str = "", reader: redact.Redactor | None = None) -> str:
    """The report of this machine.

    Args:
        log: path of a log to add, ``-`` for standard input, or "" for the set-up's own.
        reader: what to hide; that of the running user by default.

    Raises:
        UsageError: the log cannot be read.
    """
    hide = reader or redact.of_this_machine()
    text = read_log(log) if log else ""  # before anything that takes time
    target = find_target()
    facts = readings.read()
    return hide(compose(facts, judge(facts), versions(target), commit(target.root), log, text))


def compose(
    facts: Facts, verdict: Verdict, installed: dict[str, str], revision: str, log: str, text: str
) -> str:
    """The block, from values alone; not yet redacted."""
    report = show.report(facts, verdict, verbose=True)
    parts = [
        "### turbodiffusion bug report",
        "",
        f"- turbodiffusion {__version__}, {revision or 'no git checkout'}",
        f"- Python {'.'.join(map(str, facts.python.version))} ({facts.python.kind})",
        f"- {show.summary(facts, verdict)}",
        "",
        _folded("doctor -v", report),
        _folded("versions", "\n".join(f"{name}=={number}" for name, number in installed.items())),
        _folded("variables", "\n".join(f"{k}={v}" for k, v in sorted(facts.variables.items()))),
    ]
    text = text or _set_up_log(facts)
    if text:
        explained = explain(text)
        parts.append(_folded("what the catalogue says about the log", explained))
        lines = text.splitlines()
        name = log or "setup.log"
        parts.append(_folded(f"end of {name} ({len(lines)} lines)", "\n".join(lines[-TAIL:])))
    machine = json.dumps(verdict.as_json(facts), separators=(",", ":"))
    parts.append(_folded("doctor --json", machine))
    return "\n".join(parts)


def explain(text: str) -> str:
    """The catalogue's answer to a log."""
    from turbodiffusion.doctor import explain

    return explain.explain(text).render()


def read_log(source: str) -> str:
    """The text of a log."""
    if source == "-":
        return sys.stdin.read()
    try:
        return Path(source).read_text("utf-8", "replace")
    except OSError as error:
        raise UsageError(
            "bugreport-log-unreadable",
            f"{source} cannot be read ({error.strerror}).",
            "Give the path of a text file, or - and paste the log.",
        ) from error


def versions(target: Target) -> dict[str, str]:
    """The installed releases of the packages that matter."""
    there = packages.distributions(target)
    return {name: there[name].version for name in RELEVANT.split() if name in there}


def commit(root: Path) -> str:
    """The checkout's commit, marked when files were changed; "" without git."""
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else ""


def _set_up_log(facts: Facts) -> str:
    """The environment's own log, if there is one."""
    path = Path(facts.python.environment or ".") / "setup.log"
    try:
        return path.read_text("utf-8", "replace") if facts.python.environment else ""
    except OSError:
        return ""


def _folded(title: str, body: str) -> str:
    """A section that is closed until it is clicked; the fence outlives fences inside."""
    fence = "`" * (4 if "```" in body else 3)
    inner = f"{fence}text\n{body.strip() or '(nothing)'}\n{fence}"
    return f"<details><summary>{title}</summary>\n\n{inner}\n\n</details>\n"
