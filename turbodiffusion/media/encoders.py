"""One encoder for each format, all driven the same way: write pieces, then close or abort.

The settings document goes into the file with the first frame or with the last, whichever the
format wants; the caller never sees a difference. Formats with compressed video live here and in
:mod:`turbodiffusion.media.gif`.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from turbodiffusion.errors import MediaError, SetupError, UsageError
from turbodiffusion.media.formats import Output
from turbodiffusion.media.libraries import import_av, import_pillow
from turbodiffusion.media.settings import JPG_COMMENT_LIMIT, PNG_KEYWORD, Document

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

BT709 = 1  # the same number in ffmpeg for matrix, primaries and transfer
LIMITED_RANGE = 1  # 16–235, what players assume of yuv420p

JPG_QUALITY = 85

CODECS: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    # format: codec, its options, container options. crf 25 is quality 5 of the released scripts.
    # faststart puts the index in front, so that a browser plays before all has arrived;
    # bitexact leaves out random identifiers: same frames, same bytes.
    "mp4": ("libx264", {"crf": "25"}, {"movflags": "+faststart", "fflags": "+bitexact"}),
    "webm": (
        "libvpx-vp9",
        {"crf": "28", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
        {"fflags": "+bitexact"},
    ),
}


@dataclass(frozen=True)
class FrameSpec:
    """What the frames of one output have in common, checked on creation."""

    width: int
    height: int
    fps: float
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise UsageError(
                "media-size",
                f"A frame of {self.width}×{self.height} pixels cannot be written.",
                "Width and height must be at least 1.",
            )
        if not (math.isfinite(self.fps) and 0 < self.fps <= 1000):
            raise UsageError(
                "media-fps",
                f"{self.fps} frames per second cannot be written.",
                "Use a number above 0 and up to 1000; the models are made for 16.",
            )

    @property
    def rate(self) -> Fraction:
        """Frames per second as a fraction; 23.976 and its like become n/1001 exactly."""
        return Fraction(self.fps).limit_denominator(1001)

    @property
    def document(self) -> str:
        return Document(self.settings, self.fps, (self.width, self.height)).to_json()

    def check(self, frames: np.ndarray | Tensor) -> np.ndarray:
        """The frames as a contiguous uint8 array (n, H, W, 3) of this size, or an error."""
        import numpy as np

        pixels = np.asarray(frames.cpu() if hasattr(frames, "cpu") else frames)
        wanted = (self.height, self.width, 3)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != wanted:
            raise UsageError(
                "media-frames",
                f"Frames of shape {tuple(pixels.shape)} and type {pixels.dtype} do not fit.",
                f"They must be uint8 of shape (n, {', '.join(map(str, wanted))}).",
            )
        return np.ascontiguousarray(pixels)


class Encoder(Protocol):
    """What the writer needs of a format. ``abort`` frees the file and never raises."""

    def write(self, pixels: np.ndarray) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


def open_encoder(output: Output, spec: FrameSpec) -> Encoder:
    """The encoder for ``output``, writing to its partial name."""
    if output.format == "gif":
        from turbodiffusion.media.gif import GifEncoder

        return GifEncoder(output.partial, spec)
    if output.format == "frames":
        return FolderEncoder(output.partial, spec)
    if output.format in CODECS:
        return ContainerEncoder(output.partial, spec, output.format)
    return PictureEncoder(output.partial, spec)


SMALL = 64
"""Pixels below which x264's macroblock tree stays off: at 32×32 it gave the same frames other bytes
in 1 run of 17 (none in 100 at 64×64), and same settings shall mean same bytes."""


class ContainerEncoder:
    """H.264 in mp4 or VP9 in webm, 4:2:0, BT.709 limited range and tagged so.

    H.264 in 4:2:0 has even sides only: an odd one is extended by repeating its last column or
    row, and the true size is kept in the document, by which ``read_video`` crops. (Sizes that
    the networks make are multiples of 8 or 16 and never need it.) VP9 stores odd sides.
    """

    def __init__(self, partial: Path, spec: FrameSpec, container_format: str) -> None:
        av = import_av()
        codec, options, container_options = CODECS[container_format]
        if codec == "libx264" and min(spec.width, spec.height) < SMALL:
            options = {**options, "x264-params": "mbtree=0"}
        if codec not in av.codecs_available:
            raise SetupError(
                "media-no-codec",
                f"This build of PyAV has no {codec} encoder, which .{container_format} needs.",
                "Install the wheel from PyPI (python -m pip install --force-reinstall av), or "
                "write a .gif or a folder of .png.",
            )
        self._av = av
        self._pad = [s % 2 if codec == "libx264" else 0 for s in (spec.height, spec.width)]
        self._tick = 1 / spec.rate
        self._count = 0
        self._container = av.open(
            str(partial), "w", format=container_format, options=container_options
        )
        try:
            self._container.metadata["comment"] = spec.document
            self._stream = self._container.add_stream(codec, rate=spec.rate, options=options)
            self._stream.height = spec.height + self._pad[0]
            self._stream.width = spec.width + self._pad[1]
            self._stream.pix_fmt = "yuv420p"
            context = self._stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED_RANGE
            self._container.start_encoding()  # a size the codec refuses is known before the work
        except BaseException:
            self.abort()
            raise

    def write(self, pixels: np.ndarray) -> None:
        import numpy as np

        down, right = self._pad
        if down or right:
            pixels = np.pad(pixels, ((0, 0), (0, down), (0, right), (0, 0)), mode="edge")
        for rgb in pixels:
            frame = self._av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE
            )
            frame.pts, frame.time_base, frame.duration = self._count, self._tick, 1
            self._container.mux(self._stream.encode(frame))
            self._count += 1

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abort(self) -> None:
        with contextlib.suppress(Exception):  # the file is thrown away, whatever it says
            self._container.close()


class PictureEncoder:
    """One frame as png (lossless) or jpg (quality 85, as the released scripts)."""

    def __init__(self, partial: Path, spec: FrameSpec) -> None:
        self._image = import_pillow()
        self._partial = partial
        self._document = spec.document
        self._pixels: np.ndarray | None = None
        length = len(self._document.encode())
        if partial.suffix.lower() != ".png" and length > JPG_COMMENT_LIMIT:
            raise MediaError(
                "media-settings-long",
                f"The settings are {length} bytes long and a jpg holds {JPG_COMMENT_LIMIT}.",
                "Write a .png instead.",
            )

    def write(self, pixels: np.ndarray) -> None:
        if len(pixels) > 1 or (len(pixels) and self._pixels is not None):
            raise UsageError(
                "media-one-frame",
                "A picture holds one frame, and more have come.",
                "Use .mp4, .webm or .gif, or .png for a folder of frames.",
            )
        if len(pixels):
            self._pixels = pixels[0].copy()

    def close(self) -> None:
        image = self._image.fromarray(self._pixels)
        if self._partial.suffix.lower() == ".png":
            save_png(image, self._partial, self._document)
        else:
            image.save(self._partial, "JPEG", quality=JPG_QUALITY, comment=self._document.encode())

    def abort(self) -> None:
        self._pixels = None


class FolderEncoder:
    """A folder of ``00000.png`` …, each lossless and each with the settings."""

    def __init__(self, partial: Path, spec: FrameSpec) -> None:
        self._image = import_pillow()
        self._partial = partial
        self._document = spec.document
        self._count = 0
        partial.mkdir()

    def write(self, pixels: np.ndarray) -> None:
        for rgb in pixels:
            path = self._partial / f"{self._count:05d}.png"
            save_png(self._image.fromarray(rgb), path, self._document)
            self._count += 1

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


def save_png(image: Any, path: Path, document: str) -> None:
    """Write a Pillow image with ``document`` in an international text chunk."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(PNG_KEYWORD, document)
    image.save(path, "PNG", pnginfo=info)
