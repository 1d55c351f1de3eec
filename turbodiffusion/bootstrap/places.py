"""Everything this program has put on the machine, shown by ``where``, removed by ``uninstall``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from turbodiffusion.bootstrap.environment import Environment
from turbodiffusion.errors import SetupError, UsageError


@dataclass(frozen=True)
class Place:
    """A file or folder of ours. ``kind`` is ``"own"``, ``"models"`` or ``"shared"``."""

    what: str
    path: Path
    kind: str = "own"

    def bytes(self) -> int:
        """The space it takes; links are not followed."""
        if self.path.is_file():
            return self.path.stat().st_size
        total = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                path = os.path.join(folder, name)
                if not os.path.islink(path):
                    total += os.path.getsize(path)
        return total


def places(environment: Environment) -> list[Place]:
    """What exists on this disk, ours first."""
    from turbodiffusion.weights.identity import cache_folder

    home = Path.home()
    hub = Path(os.environ.get("HF_HOME") or home / ".cache" / "huggingface")
    found = [
        Place("environment", environment.folder),
        Place("kept by setup", environment.folder.with_name(f"{environment.folder.name}.before")),
        Place("lock file", environment.lock_file),
        Place("cache", cache_folder()),
        Place("models", environment.root / "checkpoints", "models"),
        Place("models from the hub", Path(os.environ.get("HF_HUB_CACHE") or hub / "hub"), "shared"),
        Place("compiled kernels", home / ".triton", "shared"),
    ]
    here = Path.cwd() / "checkpoints"
    if here != environment.root / "checkpoints":
        found.insert(5, Place("models", here, "models"))
    return [place for place in found if place.path.exists()]


def run(command: str, arguments: Sequence[str], environment: Environment) -> int:
    """``turbo.py where`` and ``turbo.py uninstall [--yes] [--models]``."""
    parser = argparse.ArgumentParser(prog=f"turbo.py {command}", description=__doc__)
    if command == "uninstall":
        parser.add_argument("--yes", action="store_true", help="do not ask (models are kept)")
        parser.add_argument("--models", action="store_true", help="with --yes: models as well")
    chosen = parser.parse_args(arguments)
    found = places(environment)
    _show(found)
    if command == "where":
        return 0
    return _uninstall(found, environment, chosen.yes, chosen.models)


def _show(found: Sequence[Place]) -> None:
    words = {"own": "", "models": "asked for separately", "shared": "shared, never removed"}
    if not found:
        print("Nothing is on this machine.")
    for place in found:
        size = f"{place.bytes() / 1e6:,.1f} MB"
        print(f"{place.what:<20} {size:>14}  {place.path}  {words[place.kind]}".rstrip())


def _uninstall(found: Sequence[Place], environment: Environment, yes: bool, models: bool) -> int:
    own = [place for place in found if place.kind == "own"]
    if environment.folder.exists() and not environment.ours():
        raise SetupError(
            "setup-folder-taken",
            f"{environment.folder} was not made by turbo.py, so it is not removed by it.",
            "Remove it by hand if it is not needed.",
        )
    if os.name == "nt" and Path(sys.prefix) == environment.folder:
        raise UsageError(
            "uninstall-inside",
            "This Python is the one to be removed.",
            "Leave the environment (deactivate) and run the command with another Python.",
        )
    if own and (yes or _agree("Remove the environment, lock file and cache?")):
        for place in own:
            _remove(place.path)
    elif own:
        print("Nothing of these was removed.")
    for place in found:
        if place.kind != "models":
            continue
        if (yes and models) or (not yes and _agree(f"Remove the models in {place.path} too?")):
            _remove(place.path)
        else:
            print(f"Kept: {place.path}")
    return 0


def _agree(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise SetupError(
            "setup-folder-busy",
            f"{path} cannot be removed ({error.strerror}).",
            "Close the programs that use it and run the command again.",
        ) from error
    print(f"Removed: {path}")
