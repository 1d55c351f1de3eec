"""A finished video: what a pipeline returns and what is saved."""

from __future__ import annotations

import base64
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbodiffusion.errors import UsageError
from turbodiffusion.media.libraries import import_pillow
from turbodiffusion.media.write import open_writer

if TYPE_CHECKING:
    import numpy as np

_SHOWN_WIDTH = 384  # small clips are enlarged to about this many pixels in a notebook


@dataclass
class Video:
    """Frames with their rate and the settings that made them.

    Attributes:
        frames: uint8 array (F, H, W, 3), RGB. A tensor is converted.
        fps: frames per second.
        settings: JSON values; stored inside the file by :meth:`save`.
    """

    frames: np.ndarray
    fps: float = 16.0
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import numpy as np

        frames: Any = self.frames
        self.frames = np.asarray(frames.cpu() if hasattr(frames, "cpu") else frames)
        shape = self.frames.shape
        if self.frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not all(shape):
            raise UsageError(
                "media-frames",
                f"Frames of shape {tuple(shape)} and type {self.frames.dtype} are not a video.",
                "They must be uint8 of shape (frames, height, width, 3), at least one frame.",
            )

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        return (
            f"Video({len(self)} frames of {self.width}×{self.height}, "
            f"{self.fps:g} fps, {self.duration:.2f} s)"
        )

    @property
    def width(self) -> int:
        return int(self.frames.shape[2])

    @property
    def height(self) -> int:
        return int(self.frames.shape[1])

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self) / self.fps

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the video; the extension decides the format. Returns the name it really got.

        That is another one for a single frame under a video name (``.jpg``), for several frames
        under ``.png`` (a folder) and for a name without extension; see
        :func:`turbodiffusion.media.open_writer`, also for the errors.
        """
        writer = open_writer(
            path, self.width, self.height, self.fps, self.settings, frames=len(self)
        )
        with writer:
            writer.write(self.frames)
        return writer.path

    def to_pil(self) -> list[Any]:
        """The frames as Pillow images."""
        image = import_pillow()
        return [image.fromarray(frame) for frame in self.frames]

    def _repr_html_(self) -> str:
        """The player that a notebook shows; small clips are enlarged without smoothing."""
        with tempfile.TemporaryDirectory() as folder:
            name = "clip.mp4" if len(self) > 1 else "clip.png"
            data = base64.b64encode(self.save(Path(folder, name)).read_bytes()).decode()
        scale = max(1, _SHOWN_WIDTH // self.width)
        look = f'width="{self.width * scale}" style="image-rendering: pixelated; max-width: 100%"'
        if len(self) == 1:
            return f'<img {look} src="data:image/png;base64,{data}">'
        source = f"data:video/mp4;base64,{data}"
        return f'<video {look} controls loop autoplay muted src="{source}"></video>'
