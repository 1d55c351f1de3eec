"""A small checkout in a temporary folder: the real door, a stand-in for the rooms behind it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from turbodiffusion.bootstrap.environment import MARK, Environment, base_python

ROOT = Path(__file__).parents[2]

BARE_PYTHON = base_python()
"""The interpreter behind the one that runs the tests: no packages of ours in it."""

COMMAND_LINE = """
import os, sys
def main(arguments=None):
    arguments = arguments or sys.argv[1:]
    print("ran", arguments, sys.prefix != sys.base_prefix)
    if arguments[0] == "fail":
        return 2
    if arguments[0] == "doctor" and len(arguments) > 1:
        import torch
    return 0
"""


def make_checkout(folder: Path) -> Environment:
    """Copy the door and the bootstrap into ``folder``, with a command line that only reports."""
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    shutil.copy(ROOT / "turbo.py", folder)
    package = folder / "turbodiffusion"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "turbodiffusion" / "bootstrap", package / "bootstrap", ignore=ignore)
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "turbodiffusion" / name, package)
    (package / "cli").mkdir()
    (package / "cli" / "__init__.py").touch()
    (package / "cli" / "main.py").write_text(COMMAND_LINE)
    return Environment(folder, folder / ".venv")


def make_ready(environment: Environment, extras: tuple[str, ...] = ()) -> None:
    """An environment without packages that carries a valid stamp."""
    environment.folder.mkdir(parents=True)
    (environment.folder / MARK).touch()
    command = [sys.executable, "-m", "venv", "--without-pip", str(environment.folder)]
    subprocess.run(command, check=True)
    (environment.site_packages / "torch-2.13.0+cpu.dist-info").mkdir()
    environment.write_stamp(extras, "cpu", "2.13.0+cpu")


def turbo(
    environment: Environment, *arguments: str, python: str = BARE_PYTHON, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run ``turbo.py`` of the small checkout from another folder."""
    cleared = ("TURBODIFFUSION_VENV", "TURBODIFFUSION_TORCH", "PYTHONPATH")
    kept = {key: value for key, value in os.environ.items() if key not in cleared}
    return subprocess.run(
        [python, str(environment.root / "turbo.py"), *arguments],
        capture_output=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        cwd=environment.root.parent,
        env={**kept, "PYTHONIOENCODING": "utf-8", **variables},
        timeout=120,
    )
