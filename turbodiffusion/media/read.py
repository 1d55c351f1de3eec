"""Videos back into arrays: for tests, for the judge, and for looking at a file.

Every format that :mod:`turbodiffusion.media.write` makes is read, by content and not by name;
other containers are left to ffmpeg. The whole video is held in memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbodiffusion.media.formats import frame_files
from turbodiffusion.media.libraries import import_av, import_pillow
from turbodiffusion.media.settings import PICTURES, Document, read_document, sniff, unreadable

if TYPE_CHECKING:
    import numpy as np

    from turbodiffusion.media.video import Video

DEFAULT_FPS = 16.0  # for a folder or picture that does not say


@dataclass(frozen=True)
class Facts:
    """What a file is, without its pixels. ``format`` is found by content."""

    format: str
    width: int
    height: int
    frames: int
    fps: float

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.fps


def read_video(path: str | os.PathLike[str]) -> Video:
    """All frames of a video, gif, picture or folder of frames, with rate and settings.

    Colours are converted from the matrix that the file names. ``settings`` is empty when the
    file has none.

    Raises:
        MediaError: missing, damaged, or not a video.
    """
    from turbodiffusion.media.video import Video

    path = Path(path)
    kind = sniff(path)
    document = read_document(path) or Document({})
    if kind == "frames":
        frames, fps = _read_folder(path), None
    elif kind in PICTURES:
        frames, fps = _read_picture(path)
    else:
        frames, fps = _read_container(path)
    if document.size:  # an odd side was extended by the encoder
        frames = frames[:, : document.size[1], : document.size[0]]
    return Video(frames, document.fps or fps or DEFAULT_FPS, document.settings)


def probe(path: str | os.PathLike[str]) -> Facts:
    """Format, size, number of frames and rate of a file, without decoding a video."""
    path = Path(path)
    kind = sniff(path)
    document = read_document(path) or Document({})
    if kind == "frames":
        files = frame_files(path)
        width, height, _, fps = _probe_picture(files[0])
        count = len(files)
    elif kind in PICTURES:
        width, height, count, fps = _probe_picture(path)
    else:
        kind, width, height, count, fps = _probe_container(path)
    width, height = document.size or (width, height)
    return Facts(kind, width, height, count, document.fps or fps or DEFAULT_FPS)


def _read_folder(path: Path) -> np.ndarray:
    import numpy as np

    frames = [_read_picture(file)[0][0] for file in frame_files(path)]
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise unreadable(path, ValueError(f"its frames have {len(sizes)} different sizes"))
    return np.stack(frames)


def _read_picture(path: Path) -> tuple[np.ndarray, float | None]:
    import numpy as np

    frames, seconds = [], 0.0
    try:
        with import_pillow().open(path) as image:
            for index in range(getattr(image, "n_frames", 1)):
                image.seek(index)
                frames.append(np.asarray(image.convert("RGB")))
                seconds += image.info.get("duration", 0) / 1000
    except Exception as error:  # a damaged file raises whatever its format's parser raises
        raise unreadable(path, error) from error
    return np.stack(frames), len(frames) / seconds if seconds else None


def _probe_picture(path: Path) -> tuple[int, int, int, float | None]:
    try:
        with import_pillow().open(path) as image:
            count, seconds = getattr(image, "n_frames", 1), 0.0
            for index in range(count if count > 1 else 0):
                image.seek(index)
                seconds += image.info.get("duration", 0) / 1000
            return *image.size, count, count / seconds if seconds else None
    except Exception as error:
        raise unreadable(path, error) from error


def _read_container(path: Path) -> tuple[np.ndarray, float | None]:
    import numpy as np

    av = import_av()
    try:
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            stream = _video_stream(container, path)
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
            rate = stream.average_rate
    except av.FFmpegError as error:
        raise unreadable(path, error) from error
    if not frames:
        raise unreadable(path, ValueError("it has no frames"))
    return np.stack(frames), float(rate) if rate else None


def _probe_container(path: Path) -> tuple[str, int, int, int, float | None]:
    av = import_av()
    try:
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            stream = _video_stream(container, path)
            # Matroska does not store a count; packets are counted without decoding them.
            count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            rate = float(stream.average_rate) if stream.average_rate else None
            kind = sniff(path)
            if kind == "other":
                kind = container.format.name
            return kind, stream.width, stream.height, count, rate
    except av.FFmpegError as error:
        raise unreadable(path, error) from error


def _video_stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise unreadable(path, ValueError("it has no video stream"))
    return container.streams.video[0]
