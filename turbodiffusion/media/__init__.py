"""Pictures and videos: images in, frames out, settings travelling inside the file.

``image`` and ``sizes`` prepare what an image-to-video run starts from; ``write`` streams frames
into an mp4, webm, gif, png folder or still picture that appears under its name only when
complete; ``read`` and ``settings`` bring frames and settings back; ``sheet`` draws contact sheets.
Importing this package loads neither torch nor a codec: names resolve when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Video": "video",
    "read_video": "read",
    "probe": "read",
    "read_settings": "settings",
    "open_writer": "write",
    "check_output": "write",
    "resolve_output": "formats",
    "to_uint8": "write",
    "side_by_side": "write",
    "load_image": "image",
    "prepare_image": "image",
    "RESOLUTIONS": "sizes",
    "resolution": "sizes",
    "adaptive_size": "sizes",
    "parse_size": "sizes",
    "contact_sheet": "sheet",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
