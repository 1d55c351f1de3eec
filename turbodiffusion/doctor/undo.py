"""Keep an environment while it is changed, and bring it back when the change fails.

A copy made of hard links takes no room and a second or two. It stays as it was because pip
replaces files instead of writing into them; the few files that are written in place (our own, at
the top of the folder) are copied. Where the file system has no hard links the copy is real.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from turbodiffusion.errors import SetupError

LOG = "setup.log"
WRITTEN_IN_PLACE = (LOG, "torch.txt", "turbodiffusion.json", "pyvenv.cfg")


class Snapshot:
    """A second set of names for everything in ``folder``, beside it as ``NAME.before``.

    Use :meth:`restore` or :meth:`discard`, once. A leftover of an interrupted change is newer
    knowledge than none: it is put back by :func:`recover` before anything else is done.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.copy = beside(folder)
        if self.copy.exists():
            shutil.rmtree(self.copy)
        partial = folder.with_name(f"{folder.name}.copying")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _link_tree(folder, partial)
            partial.rename(self.copy)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise SetupError(
                "setup-no-undo",
                f"{folder} cannot be kept while it is changed ({error.strerror}).",
                "Free some space, or start afresh with `turbodiffusion setup --clean`.",
            ) from error

    def restore(self) -> None:
        """The folder as it was, with the log of what went wrong."""
        with contextlib.suppress(OSError):
            shutil.copy2(self.folder / LOG, self.copy / LOG)
        _swap(self.folder, self.copy)

    def discard(self) -> None:
        """Keep the change."""
        shutil.rmtree(self.copy, ignore_errors=True)


class Aside(Snapshot):
    """The folder itself, moved away: for a fresh start that may still fail."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.copy = folder, beside(folder)
        if self.copy.exists():
            shutil.rmtree(self.copy)
        try:
            folder.rename(self.copy)
        except OSError as error:
            raise SetupError(
                "setup-folder-busy",
                f"{folder} cannot be moved ({error.strerror}).",
                "Close the programs that use it and run the command again.",
            ) from error


def beside(folder: Path) -> Path:
    """Where the copy of ``folder`` lies."""
    return folder.with_name(f"{folder.name}.before")


def recover(folder: Path) -> bool:
    """Put back what an interrupted change left; True if there was something."""
    copy = beside(folder)
    if not copy.is_dir():
        return False
    _swap(folder, copy)
    return True


def _swap(folder: Path, copy: Path) -> None:
    broken = folder.with_name(f"{folder.name}.broken")
    shutil.rmtree(broken, ignore_errors=True)
    if folder.exists():
        folder.rename(broken)
    copy.rename(folder)
    shutil.rmtree(broken, ignore_errors=True)


def _link_tree(source: Path, target: Path) -> None:
    """The tree under other names; links stay links, relative or not."""
    for folder, folders, names in os.walk(source):
        here = target / os.path.relpath(folder, source)
        here.mkdir(parents=True, exist_ok=True)
        shutil.copystat(folder, here)
        top = folder == str(source)
        for name in [*names, *(n for n in folders if os.path.islink(os.path.join(folder, n)))]:
            old, new = os.path.join(folder, name), here / name
            if os.path.islink(old):
                os.symlink(os.readlink(old), new)
            elif top and name in WRITTEN_IN_PLACE:
                shutil.copy2(old, new)
            else:
                _link(old, new)


def _link(old: str, new: Path) -> None:
    with contextlib.suppress(OSError):
        os.link(old, new)
        return
    shutil.copy2(old, new)
