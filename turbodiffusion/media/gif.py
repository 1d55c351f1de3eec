"""An animated gif, written frame by frame.

Pillow writes animations too, but keeps all frames in memory, merges equal neighbours (so that the
number of frames changes) and rounds every delay alike (16 frames per second would become 16.7).
Here Pillow compresses single frames, whose blocks are copied behind each other with a palette of
their own, and the delays are rounded so that their sum stays right.
"""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from turbodiffusion.errors import MediaError, UsageError
from turbodiffusion.media.encoders import FrameSpec
from turbodiffusion.media.libraries import import_pillow

if TYPE_CHECKING:
    import numpy as np

MAX_FPS = 50  # browsers show a delay under 2/100 s as 10/100 s
SMALL = 2**15  # pixels of a frame that is shown enlarged
_LOOP_FOREVER = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
_TRAILER = b"\x3b"


class GifEncoder:
    """Up to 256 colours a frame: exact where they suffice, otherwise dithered."""

    def __init__(self, partial: Path, spec: FrameSpec) -> None:
        if spec.fps > MAX_FPS:
            raise UsageError(
                "media-gif-fps",
                f"A gif shows at most {MAX_FPS} frames per second, not {spec.fps:g}.",
                "Use .mp4 or .webm.",
            )
        if max(spec.width, spec.height) > 0xFFFF:
            raise MediaError(
                "media-size",
                f"A gif of {spec.width}×{spec.height} pixels does not exist.",
                "Its sides end at 65535.",
            )
        self._image = import_pillow()
        self._rate = spec.rate
        self._count = 0
        self._shown = 0  # hundredths of a second
        head = b"GIF89a" + struct.pack("<HHBBB", spec.width, spec.height, 0x70, 0, 0)
        comment = b"\x21\xfe" + _sub_blocks(spec.document.encode())
        self._file = partial.open("wb")
        self._file.write(head + _LOOP_FOREVER + comment)

    def write(self, pixels: np.ndarray) -> None:
        for rgb in pixels:
            self._count += 1
            end = round(100 * self._count / self._rate)
            delay, self._shown = end - self._shown, end
            control = struct.pack("<BBBBHBB", 0x21, 0xF9, 4, 0x04, min(delay, 0xFFFF), 0, 0)
            self._file.write(control + _image_blocks(self._compress(rgb)))

    def _compress(self, rgb: np.ndarray) -> bytes:
        """One frame as a gif of its own.

        Small frames are looked at enlarged, where dithering shows as dirt: they get the most
        careful palette and nothing else. On large ones that palette takes half a second a frame
        (832×480), and gradients need dithering against banding.
        """
        image = self._image.fromarray(rgb)
        if rgb.size // 3 <= SMALL or image.getcolors(256) is not None:
            indexed = image.quantize(256, method=self._image.Quantize.MEDIANCUT)
        else:
            palette = image.quantize(256, method=self._image.Quantize.FASTOCTREE)
            indexed = image.quantize(palette=palette, dither=self._image.Dither.FLOYDSTEINBERG)
        buffer = io.BytesIO()
        indexed.save(buffer, "GIF", interlace=0)
        return buffer.getvalue()

    def close(self) -> None:
        self._file.write(_TRAILER)
        self._file.close()

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _sub_blocks(content: bytes) -> bytes:
    """Content cut into blocks of up to 255 bytes with their lengths, ended by an empty one."""
    pieces = (content[i : i + 255] for i in range(0, len(content), 255))
    return b"".join(bytes([len(piece)]) + piece for piece in pieces) + b"\x00"


def _skip_sub_blocks(gif: bytes, at: int) -> int:
    while gif[at]:
        at += 1 + gif[at]
    return at + 1


def _image_blocks(gif: bytes) -> bytes:
    """Descriptor, palette and pixels of a single-frame gif, the global palette made local."""
    flags = gif[10]
    at = 13
    palette = b""
    if flags & 0x80:
        size = 3 * 2 ** ((flags & 7) + 1)
        palette, at = gif[at : at + size], at + size
    while gif[at] == 0x21:  # extensions: label, then sub-blocks
        at = _skip_sub_blocks(gif, at + 2)
    descriptor = gif[at : at + 9]
    if gif[at + 9] & 0x80:  # it has a local palette already
        end = at + 10 + 3 * 2 ** ((gif[at + 9] & 7) + 1)
        palette_flags, palette = gif[at + 9], gif[at + 10 : end]
    else:
        palette_flags, end = 0x80 | (flags & 7), at + 10
    pixels = gif[end : _skip_sub_blocks(gif, end + 1)]
    return descriptor + bytes([palette_flags]) + palette + pixels
