"""Clips and settings shared by the tests of the media room."""

from __future__ import annotations

from typing import Any

import numpy as np

SETTINGS: dict[str, Any] = {
    "prompt": 'a “red” círculo 红色 🎬; a = b # c \\ "d"\n\ttwo lines ' * 120,
    "seed": 2**53,
    "steps": [0.5, None, True],
    "model": {"name": "micro", "sha256": "0" * 64},
}
FORMATS = ["mp4", "webm", "gif", "png"]
COLOURS = [
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255),
    (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 100, 50), (17, 240, 99),
]  # fmt: skip


def halves(width: int, height: int, frames: int = len(COLOURS)) -> np.ndarray:
    """Each frame: one colour on the left half, the next one on the right. (F, H, W, 3)."""
    clip = np.zeros((frames, height, width, 3), np.uint8)
    for i in range(frames):
        clip[i, :, : width // 2] = COLOURS[i % len(COLOURS)]
        clip[i, :, width // 2 :] = COLOURS[(i + 1) % len(COLOURS)]
    return clip


def ramps(width: int, height: int, frames: int = 3) -> np.ndarray:
    """Smooth gradients with far more than 256 colours, moving slowly. (F, H, W, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x // max(1, width - 1), 255 * y // max(1, height - 1)
    return np.stack(
        [np.stack([red, green, (red + green + 4 * i) // 3], -1).astype(np.uint8)
         for i in range(frames)]
    )  # fmt: skip
