"""Which kind of output a path asks for.

The extension decides. A path that ends in a slash, or that is an existing folder, asks for one
png per frame; so does ``name.png`` for more than one frame (folder ``name``). One frame is a
picture: under a video name it becomes a ``.jpg``, with a warning. No extension means ``.mp4``,
or ``.jpg`` for one frame, as in the released scripts.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from turbodiffusion.errors import MediaError, UsageError

Format = Literal["mp4", "webm", "gif", "png", "jpg", "frames"]

EXTENSIONS: dict[str, Format] = {
    ".mp4": "mp4", ".webm": "webm", ".gif": "gif", ".png": "png", ".jpg": "jpg", ".jpeg": "jpg",
}  # fmt: skip
ALLOWED = f"{', '.join(EXTENSIONS)}, or a name ending in / for a folder of png frames"
_FRAME_NAME = re.compile(r"\d{5,}\.png")
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # left by file managers, nobody's work


@dataclass(frozen=True)
class Output:
    """Where a video goes: the final ``path`` (absolute) and the ``format`` written there."""

    path: Path
    format: Format

    @property
    def partial(self) -> Path:
        """Hidden neighbour of ``path`` that holds the output until it is complete."""
        suffix = "" if self.format == "frames" else self.path.suffix
        stem = self.path.name if self.format == "frames" else self.path.stem
        return self.path.with_name(f".{stem}.partial{suffix}")


def resolve_output(path: str | os.PathLike[str], frames: int | None = None) -> Output:
    """Decide format and final name of an output.

    Args:
        path: what the user asked for.
        frames: number of frames to come; None when it is not known (several are assumed).

    Raises:
        UsageError: unknown extension, or more than one frame for a ``.jpg``.
        MediaError: the name is taken by something that must not be replaced.
    """
    text = os.fspath(path)
    if not text:
        raise UsageError("media-no-name", "The output name is empty.", f"Use {ALLOWED}.")
    target = Path(os.path.abspath(text))
    slash = text.endswith(("/", os.sep))
    known = EXTENSIONS.get(target.suffix.lower())
    if slash or (known is None and target.is_dir()):
        return _checked(Output(target, "frames"))
    if known is None and target.suffix:
        raise UsageError(
            "media-extension",
            f"The extension {target.suffix!r} of {text!r} is not one that can be written.",
            f"Use {ALLOWED}.",
        )
    if known is None:
        known = "jpg" if frames == 1 else "mp4"
        target = target.with_name(f"{target.name}.{known}")
    if known in ("mp4", "webm") and frames == 1:
        target, asked = target.with_suffix(".jpg"), target.name
        warnings.warn(
            f"One frame is a picture, not a video: writing {target.name} instead of {asked}.",
            stacklevel=3,
        )
        known = "jpg"
    if known == "jpg" and frames is not None and frames > 1:
        raise UsageError(
            "media-one-frame",
            f"{target.name} can hold one frame, and there are {frames}.",
            "Use .mp4, .webm or .gif, or .png for a folder of frames.",
        )
    if known == "png" and frames != 1:
        return _checked(Output(target.with_suffix(""), "frames"))
    return _checked(Output(target, known))


def frame_files(folder: Path) -> list[Path]:
    """The frames of a png folder, in order."""
    names = [entry for entry in folder.iterdir() if _FRAME_NAME.fullmatch(entry.name)]
    return sorted(names, key=lambda entry: int(entry.stem))


def _checked(output: Output) -> Output:
    """Refuse to replace a folder by a file, a file by a folder, or a folder with other content."""
    path = output.path
    if not path.name:
        raise UsageError("media-no-name", f"{path} is not a name for an output.", f"Use {ALLOWED}.")
    if output.format != "frames":
        if path.is_dir():
            raise MediaError(
                "media-is-folder", f"{path} is a folder.", "Give the output another name."
            )
        return output
    if path.exists() and not path.is_dir():
        raise MediaError(
            "media-is-file",
            f"The frames would go into the folder {path}, but a file has that name.",
            "Give the output another name.",
        )
    strangers = _strangers(path)
    if strangers:
        raise MediaError(
            "media-folder-in-use",
            f"The folder {path} holds {len(strangers)} other files (such as {strangers[0]}) "
            "and is not replaced by frames.",
            f"Name a new folder, or a file in it such as {path / 'video.mp4'}.",
        )
    return output


def _strangers(folder: Path) -> list[str]:
    """Entries of ``folder`` that an earlier run did not put there."""
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in folder.iterdir())
    return [n for n in names if not _FRAME_NAME.fullmatch(n) and n not in _LITTER]
