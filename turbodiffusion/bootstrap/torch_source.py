"""Where torch comes from: pip's find-links folder, the PyTorch wheel index, the default index.

torch is installed alone and by exact version, ahead of everything else. The wheel index replaces
the default one for that single step: beside it, pip would prefer whichever index has the higher
version, and a package that depends on torch could swap a CUDA build for a CPU build or back.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from turbodiffusion.bootstrap import repair, tags
from turbodiffusion.bootstrap.environment import Environment
from turbodiffusion.bootstrap.pip import Pip
from turbodiffusion.bootstrap.progress import say
from turbodiffusion.bootstrap.sizes import Size, of_packages, of_torch
from turbodiffusion.bootstrap.tags import Build, Machine
from turbodiffusion.errors import CapacityError

WHEEL_INDEX = "https://download.pytorch.org/whl/"


def choose_build(machine: Machine) -> Build:
    """The build for this machine, or the one ``TURBODIFFUSION_TORCH`` names; says what it saw."""
    asked = os.environ.get("TURBODIFFUSION_TORCH")
    build = tags.parse(asked) if asked else tags.choose(machine)
    driver = ".".join(map(str, machine.driver))
    for found in machine.gpus:
        capability = ".".join(map(str, found.capability))
        say(f"  GPU: {found.name}, capability {capability}, driver {driver}")
    for note in build.notes:
        say(f"  {note}")
    return build


def install_torch(
    environment: Environment, pip: Pip, machine: Machine, build: Build, extras: Sequence[str]
) -> tuple[str, str]:
    """Install torch from the nearest place; returns its exact version and the index used, or ''."""

    def announce(where: str, torch: Size) -> None:
        _announce(environment, where, torch, of_packages(machine, extras))

    present = repair.installed_torch(environment)
    if present in (build.exact, build.untagged):
        announce("torch is in place", _missing_libraries(environment, machine, build))
        return present.partition(":")[0], ""
    if machine.system != "Darwin":  # its only build is that of the default index
        local = ["--no-index", "--no-deps", f"torch=={build.exact}"]
        if pip.ask(["install", "--dry-run", "--quiet", *local])[0] == 0:
            announce(
                f"torch {build.exact} from pip's find-links folder",
                Size(0, of_torch(machine, build).disk),
            )
            pip.install(local)
            return build.exact, ""
        index = WHEEL_INDEX + build.tag
        if _offers(pip, index, build.exact):
            announce(
                f"torch {build.exact} from the PyTorch wheel index, tag {build.tag}",
                of_torch(machine, build),
            )
            pip.install(["--no-deps", f"torch=={build.exact}", "--index-url", index])
            return build.exact, "" if build.tag == "cpu" else index
        build = tags.default_index(build, machine)
        say("  The PyTorch wheel index cannot be reached: torch comes from the default index.")
        for note in build.notes:
            say(f"  {note}")
    if present == build.untagged:
        announce("torch is in place", _missing_libraries(environment, machine, build))
        return build.torch, ""
    announce(
        f"torch {build.torch} from the default package index",
        of_torch(machine, build, default_index=True),
    )
    pip.install(["--no-deps", f"torch=={build.torch}"])
    return build.torch, ""


def _missing_libraries(environment: Environment, machine: Machine, build: Build) -> Size:
    """What an interrupted start left to fetch: on Linux the CUDA libraries are packages apart."""
    there = any(name.startswith("nvidia_cudnn") for name in environment.distributions())
    if machine.system != "Linux" or build.tag == "cpu" or there:
        return Size(0, 0)
    return of_torch(machine, build)


def _offers(pip: Pip, index: str, version: str) -> bool:
    """Whether the wheel index can be reached and lists ``version`` for this interpreter."""
    quick = ["--retries", "1", "--timeout", "15"]
    status, text = pip.ask(["index", "versions", "torch", "--index-url", index, *quick])
    listed = {word.strip(" ,") for line in text.splitlines() for word in line.split()}
    return status == 0 and version in listed


def _announce(environment: Environment, where: str, torch: Size, packages: Size) -> None:
    """Say what will be downloaded and how large it is, and check the disk for it.

    pip keeps a temporary copy and one in its cache, so a download counts twice.
    """
    total = torch + packages
    say(f"  {where}: {torch.text}; other packages: {packages.text}.")
    say(f"  Up to {total.download_text} to download, about {total.disk_text} on disk afterwards.")
    folder, temporary = environment.folder, tempfile.gettempdir()
    need = total.disk + 2 * total.download
    check_disk(str(folder), need if _same_disk(folder, temporary) else total.disk)
    check_disk(temporary, total.download)


def _same_disk(first: str | Path, second: str | Path) -> bool:
    return os.stat(first).st_dev == os.stat(second).st_dev


def check_disk(folder: str, need: int) -> None:
    """Refuse to start what ``folder``'s disk has no room for (``need`` in bytes)."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise CapacityError(
            "disk-full",
            f"{folder} has {free / 1e9:.1f} GB free; the set-up needs {need / 1e9:.1f} GB there.",
            "Free some space, or set TURBODIFFUSION_VENV (and TMPDIR) to folders on a larger disk.",
        )
