"""The two libraries that read and write media, and what their failures mean to a user.

PyAV (``av``) brings ffmpeg with its codecs inside the wheel; Pillow handles pictures and gifs.
Both are imported at first use, so that everything else works, and starts fast, without them.
"""

from __future__ import annotations

import errno
from importlib import import_module
from pathlib import Path
from typing import Any

from turbodiffusion.errors import CapacityError, MediaError, SetupError, TurboDiffusionError

# A file may also hit the limit of its file system (FAT32 ends at 4 GB) or of its owner's quota.
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def import_av() -> Any:
    """The ``av`` module, or a :class:`SetupError` with the command that installs it."""
    return _import("av", "media-no-av", "mp4 and webm files need PyAV", "python -m pip install av")


def import_pillow() -> Any:
    """The ``PIL.Image`` module, or a :class:`SetupError` with the command that installs it."""
    return _import(
        "PIL.Image", "media-no-pil", "pictures and gifs need Pillow", "python -m pip install pillow"
    )


def _import(module: str, code: str, need: str, command: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise SetupError(
            code,
            f"The {need}, which cannot be imported ({error}).",
            f"Install it: {command}",
        ) from error


def write_error(error: BaseException, path: Path) -> TurboDiffusionError:
    """What an exception of the file system or of an encoder means for the output ``path``."""
    if isinstance(error, TurboDiffusionError):
        return error
    number = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if number in _FULL:
        return CapacityError(
            "media-disk-full",
            f"There is no room left to write {path} ({reason}).",
            "Free some space there, or write to another disk with --output.",
        )
    if isinstance(error, PermissionError) or number in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return MediaError(
            "media-not-writable",
            f"{path} cannot be written: {reason}.",
            "Choose a folder that you may write to with --output, or close the program that "
            "has the file open.",
        )
    return MediaError(
        "media-write-failed",
        f"{path} could not be written: {reason}.",
        "Try another folder, or another format such as .gif or .png.",
    )
