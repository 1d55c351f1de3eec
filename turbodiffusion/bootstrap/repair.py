"""Find what an interrupted installation left behind, so that pip installs it again.

pip trusts a ``*.dist-info`` folder. A kill in the middle of a step leaves packages whose files
are missing or short, or folders that pip had set aside; without their ``*.dist-info`` they count
as not installed, and the next ``pip install`` writes them whole.
"""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

from turbodiffusion.bootstrap.environment import Environment


def clean(environment: Environment) -> list[str]:
    """Forget every damaged distribution; returns their names for the log and the tests."""
    folder = environment.site_packages
    damaged = []
    for leftover in folder.glob("~*"):  # pip's name for what it was replacing
        shutil.rmtree(leftover, ignore_errors=True)
    for info in folder.glob("*.dist-info"):
        if not _whole(folder, info):
            damaged.append(info.name.removesuffix(".dist-info"))
            forget(info)
    return damaged


def forget(info: Path) -> None:
    """Remove a ``*.dist-info``: the package counts as not installed and is written whole."""
    shutil.rmtree(info)


def _whole(folder: Path, info: Path) -> bool:
    """Whether every file of a distribution is there with its recorded size."""
    try:
        with (info / "RECORD").open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.reader(stream) if len(row) == 3]
        for name, _, size in rows:
            if name.endswith(".pyc") or not size:
                continue  # bytecode is rewritten at will
            if (folder / name).stat().st_size != int(size):
                return False
    except (OSError, ValueError):
        return False
    return bool(rows)


def installed_torch(environment: Environment) -> str:
    """The installed torch: ``2.13.0+cu130``, or ``2.13.0:cu130`` from the default index, or ''.

    Files of the default index carry no tag in their metadata; their ``version.py`` does.
    """
    names = [n for n in environment.distributions() if n.startswith("torch-")]
    try:
        text = (environment.site_packages / "torch" / "version.py").read_text("utf-8")
    except OSError:
        return ""
    found = re.search(r"__version__ = ['\"]([^'\"]+)", text)
    if len(names) != 1 or not found:
        return ""
    version = names[0].removeprefix("torch-").removesuffix(".dist-info")
    tag = found.group(1).partition("+")[2] or "cpu"
    return version if "+" in version else f"{version}:{tag}"
