"""Contact sheets: many videos on one picture, to be judged at a glance.

One video is one row: its caption, optional marks (a green tick or a red cross for each attribute
that was checked), and a few frames spread evenly over time, first and last included. Small clips
are enlarged by repeating pixels, so that every pixel the model made can be seen; large ones are
reduced.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbodiffusion.errors import UsageError
from turbodiffusion.media.libraries import import_pillow
from turbodiffusion.media.write import open_writer

if TYPE_CHECKING:
    import numpy as np

Marks = Mapping[str, "bool | None"]

PAPER, INK, FAINT = (250, 250, 248), (28, 28, 30), (130, 130, 135)
GREEN, RED = (22, 128, 60), (196, 38, 38)
MARGIN, GAP, ROW_GAP = 24, 6, 26  # pixels: around the sheet, between frames, between rows
FONT_SIZE, LINE = 17, 24
TARGET_WIDTH, LARGEST_WIDTH = 128, 256  # of one frame as shown, pixels


@dataclass(frozen=True)
class _Row:
    """One video laid out: caption lines, marks, and frames in the size they are shown."""

    lines: list[str]
    marks: Marks
    frames: list[Any]

    @property
    def height(self) -> int:
        text = len(self.lines) + bool(self.marks)
        return text * LINE + GAP + int(self.frames[0].height)


def contact_sheet(
    videos: Sequence[np.ndarray],
    captions: Sequence[str],
    path: str | os.PathLike[str],
    scale: int | None = None,
    *,
    frames_per_row: int = 6,
    marks: Sequence[Marks] | None = None,
    title: str = "",
) -> Path:
    """Draw videos as rows of a picture and return the path written.

    Args:
        videos: uint8 arrays (F, H, W, 3); sizes and lengths may differ.
        captions: one for each video.
        path: ``.png`` or ``.jpg``.
        scale: pixels shown for one pixel of the video; None chooses it so that a frame is about
            128 pixels wide, and reduces frames wider than 256.
        frames_per_row: frames shown of each video; shorter videos show all they have.
        marks: for each video, attribute → right (True), wrong (False), not checked (None).
        title: heading of the sheet.
    """
    _check(videos, captions, marks, scale, frames_per_row)
    sheet = _draw(videos, captions, marks, scale, frames_per_row, title)
    import numpy as np

    settings = {"sheet": title or "contact sheet", "captions": list(captions)}
    writer = open_writer(path, sheet.width, sheet.height, 1, settings, frames=1)
    with writer:
        writer.write(np.asarray(sheet)[None])
    return writer.path


def _check(videos: Sequence[np.ndarray], captions: Sequence[str], marks: Sequence[Marks] | None,
           scale: int | None, frames_per_row: int) -> None:  # fmt: skip
    counts = {len(videos), len(captions), len(videos if marks is None else marks)}
    if len(counts) > 1 or not videos:
        raise UsageError(
            "media-sheet",
            f"A sheet cannot be made of {len(videos)} videos, {len(captions)} captions and "
            f"{'no' if marks is None else len(marks)} marks.",
            "Give at least one video, and one caption (and mark) for each.",
        )
    if frames_per_row < 1 or (scale is not None and scale < 1):
        raise UsageError(
            "media-sheet",
            f"frames_per_row {frames_per_row} and scale {scale} must be at least 1.",
            "Leave them out for a good size.",
        )


def _draw(videos: Sequence[np.ndarray], captions: Sequence[str], marks: Sequence[Marks] | None,
          scale: int | None, frames_per_row: int, title: str) -> Any:  # fmt: skip
    pillow = import_pillow()
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(size=FONT_SIZE)
    heading = ImageFont.load_default(size=FONT_SIZE + 5)
    strips = [_frames(video, scale, frames_per_row) for video in videos]
    inner = max(sum(f.width + GAP for f in strip) - GAP for strip in strips)
    inner = max(inner, 3 * TARGET_WIDTH)  # room for words beside tiny clips
    head = _wrap(title, heading, inner) if title else []
    rows = [
        _Row(_wrap(caption, font, inner), marks[i] if marks else {}, strip)
        for i, (caption, strip) in enumerate(zip(captions, strips, strict=True))
    ]
    height = 2 * MARGIN + sum(row.height + ROW_GAP for row in rows) - ROW_GAP
    height += len(head) * (LINE + 6) + (GAP if head else 0)
    sheet = pillow.new("RGB", (inner + 2 * MARGIN, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for line in head:
        draw.text((MARGIN, top), line, INK, heading)
        top += LINE + 6
    top += GAP if head else 0
    for row in rows:
        _draw_row(sheet, draw, row, top, font)
        top += row.height + ROW_GAP
    return sheet


def _draw_row(sheet: Any, draw: Any, row: _Row, top: int, font: Any) -> None:
    for line in row.lines:
        draw.text((MARGIN, top), line, INK, font)
        top += LINE
    left = MARGIN
    for name, right in row.marks.items():
        left = _draw_mark(draw, (left, top), name, right, font)
    top += (LINE if row.marks else 0) + GAP
    left = MARGIN
    for frame in row.frames:
        sheet.paste(frame, (left, top))
        draw.rectangle((left - 1, top - 1, left + frame.width, top + frame.height), outline=FAINT)
        left += frame.width + GAP


def _draw_mark(draw: Any, at: tuple[int, int], name: str, right: bool | None, font: Any) -> int:
    """A tick, cross or dash and the attribute's name; returns where the next one begins.

    Shapes differ as well as colours, for those who do not see red and green apart.
    """
    x, y = at
    colour = FAINT if right is None else GREEN if right else RED
    strokes = {
        True: [[(x, y + 11), (x + 4, y + 15), (x + 12, y + 5)]],
        False: [[(x + 1, y + 5), (x + 11, y + 15)], [(x + 11, y + 5), (x + 1, y + 15)]],
        None: [[(x + 1, y + 10), (x + 11, y + 10)]],
    }
    for stroke in strokes[right]:
        draw.line(stroke, fill=colour, width=3, joint="curve")
    name = _plain(name)
    draw.text((x + 18, y), name, colour, font)
    return int(x + 18 + draw.textlength(name, font) + 20)


def _frames(video: np.ndarray, scale: int | None, count: int) -> list[Any]:
    """Evenly spaced frames of a video as pictures in the size they are shown."""
    import numpy as np

    pillow = import_pillow()
    video = np.asarray(video)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or not video.size:
        raise UsageError(
            "media-frames",
            f"Frames of shape {video.shape} and type {video.dtype} are not a video.",
            "They must be uint8 of shape (frames, height, width, 3).",
        )
    length, height, width, _ = video.shape
    picked = np.linspace(0, length - 1, min(count, length)).round().astype(int)
    if scale is None and width > LARGEST_WIDTH:
        size = (LARGEST_WIDTH, max(1, round(height * LARGEST_WIDTH / width)))
        method = pillow.Resampling.LANCZOS
    else:
        factor = scale or max(1, round(TARGET_WIDTH / width))
        size, method = (width * factor, height * factor), pillow.Resampling.NEAREST
    return [pillow.fromarray(video[i]).resize(size, method) for i in picked]


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Break a text into lines of up to ``width`` pixels, within a word where it must be."""
    lines, line = [], ""
    for word in _plain(text).split():
        joined = f"{line} {word}".strip()
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = word
        while font.getlength(line) > width:
            cut = next(n for n in range(len(line) - 1, 0, -1) if font.getlength(line[:n]) <= width)
            lines.append(line[:cut])
            line = line[cut:]
    return [*lines, line] if line else lines or [""]


def _plain(text: str) -> str:
    """ASCII form of a text, since Pillow's built-in font draws nothing else.

    Accents are dropped, dashes and quotes replaced; other scripts become question marks. A font
    of the system would show more, and another picture on every machine.
    """
    signs = str.maketrans({"—": "-", "–": "-", "×": "x", "“": '"', "”": '"', "’": "'", "ß": "ss"})
    letters = unicodedata.normalize("NFKD", text.translate(signs))
    kept = "".join(c for c in letters if not unicodedata.combining(c))
    return kept.encode("ascii", "replace").decode()
