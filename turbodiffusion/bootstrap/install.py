"""The steps from a bare Python to a ready environment, each of which can be repeated.

Order: choose the torch build, make the folder, see where that build can be had, say how large it
is, check the disk, install torch alone, install the rest with torch pinned, try it, write the
stamp. A step that was interrupted leaves no stamp, so that the next start comes back here; what
is already installed correctly costs no download again.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from turbodiffusion.bootstrap import gpu, repair
from turbodiffusion.bootstrap.environment import MARK, Environment, base_python
from turbodiffusion.bootstrap.pip import RAW_PIP, Pip
from turbodiffusion.bootstrap.progress import say
from turbodiffusion.bootstrap.sizes import MB
from turbodiffusion.bootstrap.tags import Build, Machine
from turbodiffusion.bootstrap.torch_source import check_disk, choose_build, install_torch
from turbodiffusion.errors import CapacityError, SetupError, TurboDiffusionError

BARE = 100 * MB  # an environment with pip alone, with room to spare
PATH_FILE = "turbodiffusion.pth"

TRIAL = """
import json, torch, numpy, safetensors, tokenizers, transformers, av, PIL, ftfy, huggingface_hub
gpu = torch.cuda.is_available()
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": gpu}))
"""


def ensure(environment: Environment, extras: Sequence[str] = (), because: str = "") -> None:
    """Make the environment ready for ``extras``; returns at once when it is.

    Args:
        environment: the folder.
        extras: ``test`` or nothing.
        because: a reason to go through the steps although the stamp has no complaint.

    Raises:
        SetupError, CapacityError: with the sentence and the fix.
    """
    if not (environment.outdated(extras) or because):
        return
    with environment.locked():
        # another start may have finished meanwhile
        reason = environment.outdated(extras) or because
        if not reason:
            return
        check_folder(environment)
        say(f"Setting up {environment.folder} ({reason}).")
        try:
            _set_up(environment, extras)
        except OSError as error:
            raise _explain(environment.folder, error) from error


def _set_up(environment: Environment, extras: Sequence[str]) -> None:
    """Repair or make the environment; what cannot be repaired is made anew once."""
    machine = gpu.read_machine()
    build = choose_build(machine)
    extras = sorted({*extras, *environment.drop_stamp()})
    fresh = _make(environment)
    try:
        _fill(environment, extras, machine, build)
    except SetupError as error:
        if fresh or error.code != "setup-broken":
            raise
        say("The repaired environment does not work; making it anew.")
        _remove(environment.folder)
        _make(environment)
        _fill(environment, extras, machine, build)


def check_folder(environment: Environment) -> None:
    """Refuse folders that somebody else filled, and Pythons that cannot make one."""
    folder = environment.folder
    if folder.exists() and not environment.ours() and any(folder.iterdir()):
        raise SetupError(
            "setup-folder-taken",
            f"{folder} exists and was not made by turbo.py.",
            "Rename it, or set TURBODIFFUSION_VENV to a folder that does not exist yet.",
        )
    if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
        return
    version = "{}.{}".format(*sys.version_info[:2])
    raise SetupError(
        "setup-no-venv",
        f"This Python ({sys.executable}) lacks the modules venv and ensurepip.",
        f"On Debian and Ubuntu: sudo apt install python{version}-venv. Without administrator "
        "rights: use a Python from python.org, pyenv or uv.",
    )


def _make(environment: Environment) -> bool:
    """Create the folder unless a living one is there; True when it was created now."""
    folder = environment.folder
    if environment.alive() and Pip(environment.python, folder / "setup.log").version():
        repair.clean(environment)
        return False
    _remove(folder)
    folder.mkdir(parents=True)
    (folder / MARK).write_text("Made by turbo.py; `python turbo.py uninstall` removes it.\n")
    check_disk(str(folder), BARE)
    say("  Making a private Python environment …")
    done = subprocess.run(
        [base_python(), "-m", "venv", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["no reason given"])[-1]
        raise SetupError(
            "setup-venv",
            f"Python could not make an environment in {folder}: {last}",
            "Use a Python from python.org, pyenv or uv, or set TURBODIFFUSION_VENV elsewhere.",
        )
    return True


def _remove(folder: Path) -> None:
    if not folder.exists():
        return
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise SetupError(
            "setup-folder-busy",
            f"{folder} cannot be removed ({error.strerror}).",
            "Close the programs that use it, leave the activated environment, and start again.",
        ) from error


def _explain(folder: Path, error: OSError) -> TurboDiffusionError:
    """A full disk or a folder that may not be written, as a sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        sentence = f"The disk became full while {folder} was being filled."
        return CapacityError("disk-full", sentence, "Free some space and start again.")
    return SetupError(
        "setup-folder",
        f"{error.filename or folder} cannot be written to ({error.strerror}).",
        "Move the checkout to a folder of yours, or set TURBODIFFUSION_VENV to one.",
    )


def _fill(environment: Environment, extras: Sequence[str], machine: Machine, build: Build) -> None:
    """Install torch, then everything else with torch pinned, and try the result."""
    pip = Pip(environment.python, environment.folder / "setup.log")
    if pip.version() < RAW_PIP:
        pip.refresh()
    torch, index = install_torch(environment, pip, machine, build, extras)
    requirements = environment.root / "requirements"
    pins = environment.folder / "torch.txt"
    pins.write_text(f"torch=={torch}\n", "utf-8")
    arguments = ["-r", str(requirements / "runtime.txt")]
    for extra in extras:
        arguments += ["-r", str(requirements / f"{extra}.txt")]
    if machine.system == "Windows" and build.tag != "cpu":
        arguments.append(f"triton-windows=={build.triton_windows}")
    arguments += ["-c", str(requirements / "lock.txt"), "-c", str(pins)]
    if index:  # CUDA libraries of this tag may be published there only
        arguments += ["--extra-index-url", index]
    say("  Installing the packages …")
    pip.install(arguments)
    _write_path_file(environment)
    _write_command(environment)
    _try_out(environment, build, extras, torch)


def _write_path_file(environment: Environment) -> None:
    """Let the environment's Python find this checkout from any folder.

    An ``import`` line with the path's bytes, since the encoding of plain lines depends on the
    Python release and the system's language.
    """
    path = os.fsencode(environment.root)
    line = f"import os, sys; sys.path.insert(0, os.fsdecode({path!r}))\n"
    (environment.site_packages / PATH_FILE).write_text(line, "ascii")


def _write_command(environment: Environment) -> None:
    """The command ``turbodiffusion`` for people who activate the environment.

    A shell line starts the Python beside it, since ``#!`` cannot hold paths with spaces.
    """
    body = "import sys\n\nfrom turbodiffusion.cli.main import main\n\nsys.exit(main())\n"
    folder = environment.python.parent
    if os.name == "nt":
        (folder / "turbodiffusion-script.py").write_text(body, "ascii")
        line = '@"%~dp0python.exe" "%~dp0turbodiffusion-script.py" %*\n'
        (folder / "turbodiffusion.cmd").write_text(line, "ascii")
        return
    head = "#!/bin/sh\n'''exec' \"$(dirname -- \"$0\")/python\" \"$0\" \"$@\"\n' '''\n"
    command = folder / "turbodiffusion"
    command.write_text(head + body, "ascii")
    command.chmod(0o755)


def _try_out(environment: Environment, build: Build, extras: Sequence[str], torch: str) -> None:
    """Import what was installed in the new interpreter; only then write the stamp."""
    say("  Trying it out …")
    done = subprocess.run(
        [str(environment.python), "-I", "-c", TRIAL],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise SetupError(
            "setup-broken",
            f"The installed packages do not work together: {last}",
            "Run `python turbo.py uninstall` and start again.",
        )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if build.tag != "cpu" and found["cuda"] and not found["gpu"]:
        say("  torch does not see the GPU: the driver may be too old for it, or hidden.")
    environment.write_stamp(extras, build.tag, torch)
    say(f"Ready: torch {found['torch']}.")
