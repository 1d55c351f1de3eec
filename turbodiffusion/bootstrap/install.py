"""The steps from a bare Python to a ready environment, each of which can be repeated.

Order: choose the torch build, make the folder, see where that build can be had, say how large it
is, check the disk, install torch alone, install the rest with torch pinned, try it, write the
stamp. A step that was interrupted leaves no stamp, so that the next start comes back here; what
is already installed correctly costs no download again.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from turbodiffusion.bootstrap import gpu, repair, tags
from turbodiffusion.bootstrap.environment import MARK, Environment
from turbodiffusion.bootstrap.pip import OLDEST_PIP, PIP, Pip
from turbodiffusion.bootstrap.sizes import Size, of_packages, of_torch
from turbodiffusion.bootstrap.tags import Build, Machine
from turbodiffusion.errors import CapacityError, SetupError

WHEEL_INDEX = "https://download.pytorch.org/whl/"
PATH_FILE = "turbodiffusion.pth"

TRIAL = """
import json, torch, numpy, safetensors, tokenizers, transformers, av, PIL, ftfy, huggingface_hub
gpu = torch.cuda.is_available()
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": gpu}))
"""


def say(text: str) -> None:
    """One line for the person who waits; stdout belongs to the command."""
    print(text, file=sys.stderr, flush=True)


def ensure(environment: Environment, extras: Sequence[str] = ()) -> None:
    """Make the environment ready for ``extras``; returns at once when it is.

    Raises:
        SetupError, CapacityError: with the sentence and the fix.
    """
    if not environment.outdated(extras):
        return
    with environment.locked():
        reason = environment.outdated(extras)  # another start may have finished meanwhile
        if not reason:
            return
        say(f"Setting up {environment.folder} ({reason}).")
        _check_folder(environment)
        machine = gpu.read_machine()
        build = _choose(machine)
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


def _choose(machine: Machine) -> Build:
    asked = os.environ.get("TURBODIFFUSION_TORCH")
    build = tags.parse(asked) if asked else tags.choose(machine)
    driver = ".".join(map(str, machine.driver))
    for found in machine.gpus:
        capability = ".".join(map(str, found.capability))
        say(f"  GPU: {found.name}, capability {capability}, driver {driver}")
    for note in build.notes:
        say(f"  {note}")
    return build


def _check_folder(environment: Environment) -> None:
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
    try:
        folder.mkdir(parents=True)
        (folder / MARK).write_text("Made by turbo.py; `python turbo.py uninstall` removes it.\n")
    except OSError as error:
        raise _folder_error(folder, error) from error
    say("  Making a private Python environment …")
    done = subprocess.run(
        [getattr(sys, "_base_executable", sys.executable), "-m", "venv", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        (folder / "setup.log").write_text(done.stdout, "utf-8")
        if "No space left" in done.stdout or shutil.disk_usage(folder).free < 50_000_000:
            raise CapacityError(
                "disk-full", f"The disk of {folder} is full.", "Free some space and start again."
            )
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


def _folder_error(folder: Path, error: OSError) -> SetupError:
    return SetupError(
        "setup-folder",
        f"{folder} cannot be written to ({error.strerror}).",
        "Move the checkout to a folder of yours, or set TURBODIFFUSION_VENV to one.",
    )


def _fill(environment: Environment, extras: Sequence[str], machine: Machine, build: Build) -> None:
    """Install torch, then everything else with torch pinned, and try the result."""
    pip = Pip(environment.python, environment.folder / "setup.log")
    if pip.version() < OLDEST_PIP:
        say("  Updating pip, which is older than 22.2 …")
        pip.install(["--upgrade", PIP])
    torch, index = _install_torch(environment, pip, machine, build, extras)
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
    _try_out(environment, build, extras, torch)


def _install_torch(
    environment: Environment, pip: Pip, machine: Machine, build: Build, extras: Sequence[str]
) -> tuple[str, str]:
    """Install torch from the nearest place; returns its exact version and the index used, or ''."""

    def announce(where: str, torch: Size) -> None:
        _announce(environment, where, torch, of_packages(machine, extras))

    present = repair.installed_torch(environment)
    if present in (build.exact, build.untagged):
        announce("torch is in place", Size(0, 0))
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
        announce("torch is in place", Size(0, 0))
        return build.torch, ""
    announce(
        f"torch {build.torch} from the default package index",
        of_torch(machine, build, default_index=True),
    )
    pip.install(["--no-deps", f"torch=={build.torch}"])
    return build.torch, ""


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
    say(f"  {where[0].upper()}{where[1:]}: {torch.text}; other packages: {packages.text}.")
    say(f"  Up to {total.download_text} to download, about {total.disk_text} on disk afterwards.")
    folder, temporary = environment.folder, tempfile.gettempdir()
    need = total.disk + 2 * total.download
    _check_disk(str(folder), need if _same_disk(folder, temporary) else total.disk)
    _check_disk(temporary, total.download)


def _same_disk(first: str | Path, second: str | Path) -> bool:
    return os.stat(first).st_dev == os.stat(second).st_dev


def _check_disk(folder: str, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need:
        raise CapacityError(
            "disk-full",
            f"{folder} has {free / 1e9:.1f} GB free; the set-up needs {need / 1e9:.1f} GB there.",
            "Free some space, or set TURBODIFFUSION_VENV (and TMPDIR) to folders on a larger disk.",
        )


def _write_path_file(environment: Environment) -> None:
    """Let the environment's Python find this checkout from any folder.

    An ``import`` line with an ASCII literal, since the encoding of plain lines depends on the
    Python release and the system's language.
    """
    line = f"import sys; sys.path.insert(0, {str(environment.root)!a})\n"
    (environment.site_packages / PATH_FILE).write_text(line, "ascii")


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
