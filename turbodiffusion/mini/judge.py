"""Reads a clip of the miniature world back into words, and compares them with a caption.

``judge`` looks at pixels only: the background whose template is nearest, the one or two colours
that stand out from it, the path and size of each over time, and the shape whose template fits its
mask. ``score`` then asks whether that is what a caption wanted. No learned part is involved, so the
judge costs milliseconds, needs no weights and errs in the same way on every machine.

Accuracy on rendered clips is part of the tests; a quality figure of the embedded models is worth no
more than the figure of the judge on ground truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.mini.attributes import Expected, ExpectedObject
from turbodiffusion.mini.measure import Track, read_motion, read_shape, track
from turbodiffusion.mini.segment import Layer, find_background, find_objects

ENOUGH_FRAMES = 16  # longer clips are read at the coarsest step that keeps more frames than this
OBJECT_ATTRIBUTES = ("colour", "shape", "motion")


@dataclass(frozen=True)
class ObjectReading:
    """One object as seen; ``overlap`` is how well the shape's template fits, 0 to 1."""

    colour: str
    shape: str
    motion: str
    overlap: float


@dataclass(frozen=True)
class Reading:
    """A clip as seen. ``background`` is ``None`` where it is none of the world's."""

    background: str | None
    objects: tuple[ObjectReading, ...]


@dataclass
class Inspection:
    """A reading with what it was read from, for measures that look closer.

    Attributes:
        video: (3, F, H, W) float32 in [0, 1], the frames that were looked at.
        background: (3, H, W), the picture under the objects.
        layers, paths, fits: of the objects in the order of the reading: covered pixels, track, and
            the overlap with the best template in a few frames.
    """

    reading: Reading
    video: Tensor
    background: Tensor
    layers: list[Layer]
    paths: list[Track]
    fits: list[Tensor]


def judge(video: Tensor | np.ndarray) -> Reading:
    """Read background, colours, shapes and motions from a clip.

    Args:
        video: (F, H, W, 3), uint8 in 0…255 or floating point in 0…1, on any device.
    """
    return inspect_clip(video).reading


def some_frames(video: Tensor) -> Tensor:
    """The frames of (…, F, H, W, 3) that are looked at; a long clip is read at a coarser step."""
    return video[..., :: max(1, (video.shape[-4] - 1) // ENOUGH_FRAMES), :, :, :]


def inspect_clip(video: Tensor | np.ndarray) -> Inspection:
    """:func:`judge`, keeping what was found on the way."""
    clip = torch.as_tensor(video)
    if clip.ndim != 4 or clip.shape[-1] != 3 or min(clip.shape) < 1:
        raise UsageError(
            "judge-shape",
            f"A clip of shape {tuple(clip.shape)} cannot be judged; (F, H, W, 3) can.",
            "Give one clip with its colours last.",
        )
    scale = 1 if clip.is_floating_point() else 255
    planar = some_frames(clip).cpu().permute(3, 0, 1, 2).float().contiguous() / scale
    name, background = find_background(planar)
    layers = find_objects(planar, background)
    paths = [track(layer) for layer in layers]
    objects, fits = [], []
    for layer, path in zip(layers, paths, strict=True):
        shape, fit = read_shape(layer, path, [other for other in layers if other is not layer])
        objects.append(ObjectReading(layer.colour, shape, read_motion(path), float(fit.mean())))
        fits.append(fit)
    return Inspection(Reading(name, tuple(objects)), planar, background, layers, paths, fits)


def score(reading: Reading, expected: Expected) -> dict[str, bool | None]:
    """Compare a reading with what a caption asks for.

    Objects are matched in the order that agrees best. An attribute is true if it is right for
    every object that the caption gives it to, ``None`` if the caption leaves it open; attributes of
    an object that is not there are wrong. ``count`` is whether the number of objects is right, and
    ``joint`` whether everything is.
    """
    wanted = expected.objects
    seen: list[ObjectReading | None] = list(reading.objects)
    seen += [None] * (len(wanted) - len(seen))
    best = max(
        (_compare(order, wanted) for order in permutations(seen, len(wanted))),
        key=lambda result: sum(value is True for row in result for value in row),
    )
    marks: dict[str, bool | None] = {
        "background": None
        if expected.background is None
        else reading.background == expected.background
    }
    for column, attribute in enumerate(OBJECT_ATTRIBUTES):
        asked = [row[column] for row in best if row[column] is not None]
        marks[attribute] = all(asked) if asked else None
    marks["count"] = len(reading.objects) == len(wanted) if wanted else None
    marks["joint"] = all(value is not False for value in marks.values())
    return marks


def _compare(
    seen: tuple[ObjectReading | None, ...], wanted: tuple[ExpectedObject, ...]
) -> list[list[bool | None]]:
    """Per object and attribute: right, wrong, or ``None`` where nothing was asked."""
    return [
        [
            None
            if getattr(want, name) is None
            else thing is not None and getattr(thing, name) == getattr(want, name)
            for name in OBJECT_ATTRIBUTES
        ]
        for thing, want in zip(seen, wanted, strict=True)
    ]
