"""Frames to a file, as they come, under the final name only when the file is complete.

:func:`open_writer` takes frames in pieces of any length while later ones are still being
computed. They go into a hidden neighbour, ``.NAME.partial.EXT``; leaving the ``with`` block
renames it, and any exception in between, Ctrl-C included, removes it. What a killed process left
behind is overwritten by the next run. An existing output stays as it was until that rename.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from turbodiffusion.errors import MediaError, UsageError
from turbodiffusion.media.encoders import Encoder, FrameSpec, open_encoder
from turbodiffusion.media.formats import Output, resolve_output
from turbodiffusion.media.libraries import write_error

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def to_uint8(video_BCFHW: Tensor) -> Tensor:
    """Decoded video, float in [-1, 1], to uint8 (B, F, H, W, 3).

    clamp, (x+1)/2, clamp, floor(255·x + 0.5), as the released scripts do. Values outside the
    range are clamped; NaN becomes black.
    """
    x = (video_BCFHW.detach().float().clamp(-1, 1) + 1) / 2
    x = x.clamp(0, 1).nan_to_num(0.0).mul(255).add(0.5).floor()
    return x.byte().permute(0, 2, 3, 4, 1).contiguous()


def side_by_side(frames_BFHWC: Tensor) -> Tensor:
    """Samples of one batch joined along the width: (B, F, H, W, 3) to (F, H, B·W, 3)."""
    b, f, h, w, c = frames_BFHWC.shape
    return frames_BFHWC.permute(1, 2, 0, 3, 4).reshape(f, h, b * w, c)


def open_writer(
    path: str | os.PathLike[str],
    width: int,
    height: int,
    fps: float,
    settings: dict[str, Any] | None = None,
    *,
    frames: int | None = None,
) -> Writer:
    """A context manager that writes one output; its extension decides the format.

    Args:
        path: final name, see :mod:`turbodiffusion.media.formats`. Parents are created.
        width, height: size of every frame in pixels.
        fps: frames per second, above 0.
        settings: stored inside the file, any JSON values.
        frames: how many will come, if known. It decides between a picture and a video at once;
            otherwise the first frame is held back until a second one, or the end, decides.

    Raises:
        UsageError: a name, size, rate or frame that cannot be written.
        MediaError: the place cannot be written, or no frame came.
        CapacityError: the disk is full.
        SetupError: the library for this format is missing.
    """
    return Writer(path, FrameSpec(width, height, fps, settings or {}), frames)


def check_output(path: str | os.PathLike[str], frames: int | None = None) -> Path:
    """The final name that :func:`open_writer` would give, after trying that it can be written.

    For the time before hours of work: creates the parent folders, leaves nothing else behind.
    Raises as :func:`open_writer` does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said again when the file is really opened
        output = resolve_output(path, frames)
    with _explained(output.path):
        _prepare(output.path.parent)
    return output.path


class Writer:
    """Made by :func:`open_writer`. ``path`` is the final name, ``frames`` what came so far."""

    def __init__(self, path: str | os.PathLike[str], spec: FrameSpec, expected: int | None) -> None:
        if expected is not None and expected < 1:
            raise UsageError("media-empty", f"A video of {expected} frames cannot be written.",
                             "Ask for at least one frame.")  # fmt: skip
        self._asked = path
        self._spec = spec
        self._expected = expected
        self._output: Output = resolve_output(path, expected)
        self._encoder: Encoder | None = None
        self._held: np.ndarray | None = None
        self.frames = 0

    @property
    def path(self) -> Path:
        """Final name, absolute. It is definite once the first two frames, or all, have come."""
        return self._output.path

    def __enter__(self) -> Writer:
        try:
            with _explained(self.path):
                _prepare(self._output.path.parent)
                if self._expected is not None:
                    self._start()
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, frames: np.ndarray | Tensor) -> None:
        """Append uint8 frames (n, H, W, 3); n may differ from call to call."""
        pixels = self._spec.check(frames)
        if not len(pixels):
            return
        self.frames += len(pixels)
        if self._encoder is None and self._held is None and self.frames == 1:
            self._held = pixels.copy()  # the caller may reuse its buffer
            return
        with _explained(self.path):
            self._feed(pixels)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._discard()
            return
        try:
            with _explained(self.path):
                self._finish()
        except BaseException:
            self._discard()
            raise
        self._publish()

    def _feed(self, pixels: np.ndarray) -> None:
        if self._encoder is None:
            self._output = resolve_output(self._asked, self.frames)
            self._start()
        assert self._encoder is not None
        if self._held is not None:
            self._encoder.write(self._held)
            self._held = None
        self._encoder.write(pixels)

    def _start(self) -> None:
        _remove(self._output.partial)
        self._encoder = open_encoder(self._output, self._spec)

    def _finish(self) -> None:
        if not self.frames:
            raise MediaError(
                "media-empty",
                f"{self._output.path} was not written: no frame came.",
                "Ask for at least one frame.",
            )
        if self._held is not None:
            self._feed(self._held[:0])
        assert self._encoder is not None
        self._encoder.close()

    def _publish(self) -> None:
        """Give the complete output its name. It is kept where it is should that fail."""
        partial, final = self._output.partial, self._output.path
        try:
            if self._output.format == "frames":
                resolve_output(f"{final}{os.sep}")  # still ours to replace?
                _replace_folder(partial, final)
            else:
                os.replace(partial, final)
        except (OSError, MediaError) as error:
            raise MediaError(
                "media-not-renamed",
                f"The output is complete but could not be named {final} ({error}).",
                f"It is kept as {partial}; close the program that has {final.name} open, and "
                "rename it.",
            ) from error

    def _discard(self) -> None:
        if self._encoder is not None:
            self._encoder.abort()
            self._encoder = None
        _remove(self._output.partial)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn failures of the file system and of ffmpeg into errors that a user can act on."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith("av."):
            raise
        raise write_error(error, path) from error


def _prepare(folder: Path) -> None:
    """Create ``folder`` and try a file in it, so that a bad place is known before the work."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _remove(path: Path) -> None:
    """Delete a file or folder; what cannot be deleted will be reported when it is written to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _replace_folder(partial: Path, final: Path) -> None:
    """Swap a folder in. No system replaces a filled folder in one step, so the old one steps
    aside first and is put back if the new one cannot take its place."""
    aside = final.with_name(f".{final.name}.old")
    _remove(aside)
    if final.exists():
        os.replace(final, aside)
    try:
        os.replace(partial, final)
    except OSError:
        if aside.exists():
            os.replace(aside, final)
        raise
    _remove(aside)
