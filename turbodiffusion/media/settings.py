"""Settings inside the file: how a video says where it came from.

Every output carries one JSON document: the settings of the run under the key ``turbodiffusion``,
and beside them the frame rate and the size of the picture, which not every container can hold
(a png folder has no frame rate; an mp4 with an odd side is stored one pixel larger). It sits in
the ``comment`` tag of mp4 and webm, the comment extension of a gif, the comment segment of a jpg,
and in a text chunk of a png, where other programs show it too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbodiffusion.errors import MediaError
from turbodiffusion.media.formats import frame_files
from turbodiffusion.media.libraries import import_av, import_pillow

_KEY = "turbodiffusion"
PNG_KEYWORD = "Comment"
JPG_COMMENT_LIMIT = 65533  # the length of a JPEG segment is a 16-bit number that counts itself


@dataclass(frozen=True)
class Document:
    """What is stored in a file: settings of the run, frames per second, size of the picture."""

    settings: dict[str, Any]
    fps: float | None = None
    size: tuple[int, int] | None = None

    def to_json(self) -> str:
        """One line of JSON; readable Unicode unless it holds something that UTF-8 cannot."""
        content = {_KEY: self.settings, "fps": self.fps, "size": self.size}
        try:
            text = json.dumps(content, ensure_ascii=False, default=_plain)
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate, from an undecodable command line
            text = json.dumps(content, default=_plain)
        except (TypeError, ValueError) as error:
            raise MediaError(
                "media-settings-value",
                f"The settings cannot be stored as JSON: {error}.",
                "Use text, numbers, booleans, None, lists and dictionaries.",
            ) from error
        return text

    @classmethod
    def from_json(cls, text: str) -> Document | None:
        """The document in ``text``, or None when the text is somebody else's comment."""
        try:
            content = json.loads(text)
        except ValueError:
            return None
        if not isinstance(content, dict) or not isinstance(content.get(_KEY), dict):
            return None
        fps, size = content.get("fps"), content.get("size")
        return cls(
            settings=content[_KEY],
            fps=float(fps) if isinstance(fps, int | float) and fps > 0 else None,
            size=(int(size[0]), int(size[1])) if isinstance(size, list) else None,
        )


def _plain(value: Any) -> Any:
    """JSON form of the values that settings commonly hold besides plain ones."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # numpy and torch scalars
        return value.item()
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Settings stored in an mp4, webm, gif, png, jpg or png folder.

    Raises:
        MediaError: no such file, not a picture or video, or no settings in it.
    """
    document = read_document(Path(path))
    if document is None:
        raise MediaError(
            "media-no-settings",
            f"{os.fspath(path)} holds no settings of turbodiffusion.",
            "Settings are stored by generate; editors and messengers often strip them.",
        )
    return document.settings


def read_document(path: Path) -> Document | None:
    """The stored document of any file that :mod:`write` makes; None when there is none."""
    kind = sniff(path)
    if kind == "frames":
        path = frame_files(path)[0]
        kind = sniff(path)
    comments = _picture_comments(path) if kind in PICTURES else _container_comments(path)
    for comment in comments:
        document = Document.from_json(comment)
        if document is not None:
            return document
    return None


PICTURES = {"png", "gif", "jpg"}


def sniff(path: Path) -> str:
    """Kind of a file by its first bytes, never by its name.

    Returns ``frames`` for a folder of frames, ``png``, ``gif``, ``jpg``, ``mp4``, ``webm`` or
    ``other``. A wrong name is common: the released scripts write one frame as a JPEG called .mp4.
    """
    try:
        if path.is_dir():
            if frame_files(path):
                return "frames"
            raise MediaError(
                "media-no-frames",
                f"The folder {path} holds no frames (00000.png, 00001.png …).",
                "Give a video file, or a folder written by turbodiffusion.",
            )
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError as error:
        raise MediaError(
            "media-missing", f"There is no file {path}.", "Check the name and the folder."
        ) from error
    except OSError as error:
        raise MediaError(
            "media-unreadable",
            f"{path} cannot be read: {error.strerror or error}.",
            "Check its permissions.",
        ) from error
    starts = {b"\x89PNG": "png", b"GIF8": "gif", b"\xff\xd8": "jpg", b"\x1aE\xdf\xa3": "webm"}
    for magic, kind in starts.items():
        if head.startswith(magic):
            return kind
    return "mp4" if head[4:8] == b"ftyp" else "other"


def unreadable(path: Path, error: BaseException) -> MediaError:
    """The error for a file that neither Pillow nor ffmpeg can make sense of."""
    return MediaError(
        "media-damaged",
        f"{path} cannot be read as a picture or video ({error}).",
        "The file may be truncated, or be something else under this name.",
    )


def _picture_comments(path: Path) -> list[str]:
    image_module = import_pillow()
    try:
        with image_module.open(path) as image:
            info: Mapping[Any, Any] = image.info
            values = [info.get(PNG_KEYWORD), info.get("comment")]
            if PNG_KEYWORD not in info and hasattr(image, "text"):
                image.load()  # a text chunk may also follow the pixels
                values.append(image.text.get(PNG_KEYWORD))
    except Exception as error:  # a damaged file raises whatever its format's parser raises
        raise unreadable(path, error) from error
    texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
    return [str(text) for text in texts if text]


def _container_comments(path: Path) -> list[str]:
    av = import_av()
    try:
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            return [v for k, v in container.metadata.items() if k.lower() == "comment"]
    except av.FFmpegError as error:
        raise unreadable(path, error) from error
