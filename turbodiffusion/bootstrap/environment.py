"""The private environment beside ``turbo.py``: where it is and whether it can be trusted.

A stamp, written last, says what the environment was made of: a fingerprint of the requirement
files, the interpreter, this checkout's place, and the installed distributions. A start compares
it with what is there now, which costs a few milliseconds; anything that differs means a repair.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from turbodiffusion.errors import SetupError

STEPS_VERSION = 2
"""Raised when the installation steps change, so that older environments are repaired."""

STAMP = "turbodiffusion.json"
MARK = "turbodiffusion-environment"
REQUIREMENTS = {"": ("runtime.txt", "lock.txt"), "test": ("test.txt",)}


def base_python() -> str:
    """The interpreter an environment is made from, also when this one is an environment's own."""
    if sys.prefix == sys.base_prefix:
        return sys.executable
    if os.name == "nt":
        return getattr(sys, "_base_executable", sys.executable)
    return os.path.realpath(sys.executable)  # Python 3.10 has the environment's in its variable


class Environment:
    """The folder ``.venv`` (or ``TURBODIFFUSION_VENV``) of the checkout at ``root``."""

    def __init__(self, root: str | Path, folder: str | Path | None = None) -> None:
        self.root = Path(root)
        chosen = folder or os.environ.get("TURBODIFFUSION_VENV")
        self.folder = Path(os.path.abspath(os.path.expanduser(chosen or self.root / ".venv")))
        self._held = False

    @property
    def python(self) -> Path:
        """The interpreter inside, whether it exists or not."""
        inside = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
        return self.folder.joinpath(*inside)

    @property
    def site_packages(self) -> Path:
        """Where packages go; follows the version the environment was made with."""
        if os.name == "nt":
            return self.folder / "Lib" / "site-packages"
        minor = ".".join(self.settings().get("version", "0.0").split(".")[:2])
        return self.folder / "lib" / f"python{minor}" / "site-packages"

    def settings(self) -> dict[str, str]:
        """The lines of ``pyvenv.cfg`` as a dictionary, empty when there is none."""
        try:
            lines = (self.folder / "pyvenv.cfg").read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return {}
        pairs = (line.partition("=") for line in lines if "=" in line)
        return {key.strip(): value.strip() for key, _, value in pairs}

    def alive(self) -> bool:
        """Whether the interpreter it was made from is still installed."""
        home = self.settings().get("home", "")
        return bool(home) and os.path.isdir(home) and self.python.exists()

    def ours(self) -> bool:
        """Whether this program made the folder, so that it may also remove it."""
        return (self.folder / MARK).is_file()

    def outdated(self, extras: Sequence[str] = ()) -> str:
        """Why the environment cannot be used as it is, or an empty string."""
        if not self.folder.exists():
            return "first start"
        if not self.alive():
            return "the Python it was made with is gone"
        stamp = self.read_stamp()
        if not stamp:
            return "the last set-up did not finish"
        for extra in ("", *extras):
            made = stamp["made"].get(extra)
            if made is None:
                return f"the {extra} packages are not installed yet"
            if made != self.fingerprint(extra):
                return "the requirements have changed"
        asked = os.environ.get("TURBODIFFUSION_TORCH")
        if asked and asked != stamp["tag"]:
            return f"TURBODIFFUSION_TORCH asks for {asked}, installed is {stamp['tag']}"
        missing = set(stamp["distributions"]) - set(self.distributions())
        if missing:
            return f"{min(missing).removesuffix('.dist-info')} is no longer there"
        return ""

    def fingerprint(self, extra: str = "") -> str:
        """A digest of everything the packages of ``extra`` depend on."""
        digest = hashlib.sha256()
        version = self.settings().get("version", "")
        digest.update(f"{STEPS_VERSION}\n{version}\n{self.root}\n".encode("utf-8", "replace"))
        for name in REQUIREMENTS[extra]:
            digest.update((self.root / "requirements" / name).read_bytes().replace(b"\r\n", b"\n"))
        return digest.hexdigest()

    def distributions(self) -> list[str]:
        """Names of the installed ``*.dist-info`` folders, which carry the versions."""
        try:
            return sorted(n for n in os.listdir(self.site_packages) if n.endswith(".dist-info"))
        except OSError:
            return []

    def read_stamp(self) -> dict[str, Any]:
        """The stamp, or an empty dictionary when there is none that can be read."""
        try:
            stamp = json.loads((self.folder / STAMP).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        keys = {"made", "tag", "torch", "distributions"}
        return stamp if isinstance(stamp, dict) and keys <= stamp.keys() else {}

    def write_stamp(self, extras: Sequence[str], tag: str, torch: str) -> None:
        """Declare the environment complete. The file appears whole or not at all."""
        stamp = {
            "made": {extra: self.fingerprint(extra) for extra in ("", *extras)},
            "tag": tag,
            "torch": torch,
            "distributions": self.distributions(),
        }
        partial = self.folder / f"{STAMP}.partial"
        partial.write_text(json.dumps(stamp, indent=1), "utf-8")
        os.replace(partial, self.folder / STAMP)

    def drop_stamp(self) -> list[str]:
        """Declare the environment incomplete; returns the extras it had."""
        extras = [extra for extra in self.read_stamp().get("made", {}) if extra in REQUIREMENTS]
        (self.folder / STAMP).unlink(missing_ok=True)
        return [extra for extra in extras if extra]

    @property
    def lock_file(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.lock")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second start from installing at the same time; the system frees a dead one's.

        Inside itself it does nothing, so that a change of several steps can hold it throughout.
        """
        if self._held:
            yield
            return
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            stream = open(self.lock_file, "a+b")  # noqa: SIM115 - closed by the with below
        except OSError as error:
            raise SetupError(
                "setup-folder",
                f"{self.folder.parent} cannot be written to ({error.strerror}).",
                "Move the checkout to a folder of yours, or set TURBODIFFUSION_VENV to one.",
            ) from error
        with stream:
            if not _try_lock(stream):
                print("Waiting for another start that is setting up …", file=sys.stderr)
                _wait_lock(stream)
            self._held = True
            try:
                yield
            finally:
                self._held = False


def _try_lock(stream: IO[bytes]) -> bool:
    """Take the lock without waiting. File systems without locks count as free."""
    try:
        if sys.platform == "win32":
            import msvcrt

            stream.seek(0)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def _wait_lock(stream: IO[bytes]) -> None:
    import time

    while not _try_lock(stream):
        time.sleep(0.5)
