"""Which interpreter is judged, and what kind it is.

``python turbo.py doctor`` is started by any Python. When that one has no torch but the checkout
has an environment with a living interpreter, the environment is what a run would use, so that is
judged.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from turbodiffusion.bootstrap.environment import Environment
from turbodiffusion.doctor.facts import Python

ROOT = Path(__file__).resolve().parents[3]

QUESTION = """
import json, os, sys, sysconfig
print(json.dumps([list(sys.version_info[:3]), sys.maxsize > 2**32, sys.prefix, sys.base_prefix,
    sysconfig.get_paths()["include"], sysconfig.get_config_var("Py_GIL_DISABLED") or 0]))
"""


@dataclass(frozen=True)
class Target:
    """The interpreter that is judged, its search path for packages, and the checkout."""

    python: Path
    folders: tuple[Path, ...]
    root: Path
    environment: Environment
    inside: bool  # whether it is the environment beside turbo.py


def find_target(environment: Environment | None = None) -> Target:
    """The environment given, else this interpreter, else the environment beside turbo.py."""
    own = environment or Environment(ROOT)
    here = tuple(Path(p) for p in sys.path if p)
    running = _same(sys.prefix, own.folder)
    elsewhere = own.alive() and not running
    if elsewhere and (environment is not None or not any((p / "torch").is_dir() for p in here)):
        return Target(own.python, (own.site_packages,), ROOT, own, True)
    return Target(Path(sys.executable), here, ROOT, own, running)


def read_python(target: Target) -> Python:
    """Version, kind and headers; another interpreter than this one is asked in a child."""
    if _same(target.python, sys.executable):
        gil = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
        include = sysconfig.get_paths()["include"]
        known = (sys.version_info[:3], sys.maxsize > 2**32, sys.prefix, sys.base_prefix)
        return _python(target, *known, include, gil)
    try:
        done = subprocess.run(
            [str(target.python), "-I", "-c", QUESTION],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        version, wide, prefix, base, include, gil = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return Python(version=(0,), executable=str(target.python), kind="broken", headers=False)
    return _python(target, tuple(version), wide, prefix, base, include, bool(gil))


def _python(
    target: Target,
    version: tuple[int, ...],
    wide: bool,
    prefix: str,
    base: str,
    include: str,
    gil: bool,
) -> Python:
    environment = prefix if prefix != base else os.environ.get("CONDA_PREFIX", "")
    checkout = (target.root / "turbo.py").is_file()
    ours = target.inside or (not environment and checkout)  # without one, setup makes ours
    return Python(
        version=version,
        bits=64 if wide else 32,
        executable=str(target.python),
        kind=kind(prefix, base, Path(base)),
        headers=(Path(include) / "Python.h").is_file(),
        libraries=os.name != "nt" or (Path(base) / "libs").is_dir(),
        free_threaded=gil,
        environment=environment,
        ours=ours,
        outdated=target.environment.outdated() if target.inside else "",
    )


def kind(prefix: str, base: str, folder: Path) -> str:
    """venv, conda, store, embedded or system."""
    if "WindowsApps" in base or "PythonSoftwareFoundation" in base:
        return "store"
    if any(folder.glob("python3*._pth")):
        return "embedded"
    if prefix != base:
        return "venv"
    return "conda" if (folder / "conda-meta").is_dir() else "system"


def _same(first: str | Path, second: str | Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False
