"""Frame sizes: the named resolutions, and the size that keeps an image's shape.

Everything here is (width, height), as people write sizes; tensors are (height, width).
"""

from __future__ import annotations

import math
import re

from turbodiffusion.errors import UsageError

ASPECTS = ("1:1", "4:3", "3:4", "16:9", "9:16")

_WIDE: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "480p": ((640, 640), (640, 480), (832, 480)),
    "720p": ((960, 960), (960, 720), (1280, 720)),
    "480": ((480, 480), (640, 480), (768, 432)),
    "512": ((512, 512), (640, 512), (640, 384)),
    "720": ((960, 960), (960, 704), (1280, 704)),
}
RESOLUTIONS: dict[str, dict[str, tuple[int, int]]] = {
    name: {
        "1:1": square,
        "4:3": classic,
        "3:4": classic[::-1],
        "16:9": wide,
        "9:16": wide[::-1],
    }
    for name, (square, classic, wide) in _WIDE.items()
}
"""``RESOLUTIONS[name][aspect] == (width, height)``, as in the released scripts."""


def resolution(name: str, aspect: str = "16:9") -> tuple[int, int]:
    """(width, height) of a named resolution such as ``480p`` at an aspect such as ``16:9``."""
    if name not in RESOLUTIONS:
        raise UsageError(
            "media-resolution",
            f"There is no resolution called {name!r}; known are {', '.join(RESOLUTIONS)}.",
            "Use one of these, or a size such as 832x480.",
        )
    if aspect not in RESOLUTIONS[name]:
        raise UsageError(
            "media-aspect",
            f"There is no aspect ratio {aspect!r}; known are {', '.join(ASPECTS)}.",
            "Use one of these, or a size such as 832x480.",
        )
    return RESOLUTIONS[name][aspect]


def adaptive_size(image_h: int, image_w: int, area: int, multiple: int = 16) -> tuple[int, int]:
    """(width, height) with the shape of an image and about ``area`` pixels.

    Both are multiples of ``multiple``; ties round to even, as Python's ``round`` does and as the
    released image-to-video script relies on. The result may exceed ``area`` slightly.
    """
    if min(image_h, image_w, area, multiple) < 1:
        raise UsageError(
            "media-size",
            f"An image of {image_w}×{image_h} cannot be fitted to {area} pixels.",
            "Sizes must be positive.",
        )
    ratio = image_h / image_w
    width = multiple * round(math.sqrt(area / ratio) / multiple)
    height = multiple * round(math.sqrt(area * ratio) / multiple)
    if not width or not height:
        raise UsageError(
            "media-too-narrow",
            f"An image of {image_w}×{image_h} is too narrow: at {area} pixels its short side "
            f"would be under {multiple}.",
            "Crop the image, or give the size with --resolution.",
        )
    return width, height


def parse_size(text: str, multiple: int = 1) -> tuple[int, int]:
    """(width, height) of ``"832x480"`` (also ``×``, ``*``), both multiples of ``multiple``.

    Raises:
        UsageError: not a size, or not divisible; the message names the nearest legal size.
    """
    match = re.fullmatch(r"\s*(\d{1,6})\s*[xX×*]\s*(\d{1,6})\s*", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(size):
        raise UsageError(
            "media-size", f"{text!r} is not a size.", "Write width x height, such as 832x480."
        )
    if size[0] % multiple or size[1] % multiple:
        near = [max(multiple, round(side / multiple) * multiple) for side in size]
        raise UsageError(
            "media-size-multiple",
            f"The size {text.strip()} does not fit: both sides must be multiples of {multiple}.",
            f"The nearest is {near[0]}x{near[1]}.",
        )
    return size
