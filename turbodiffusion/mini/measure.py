"""Objects to words: the motion of a track and the shape of a mask.

Second half of the judge. Lengths are fractions of the frame's height, as in the world. The
thresholds lie about half way between what the world draws and what any other motion would give, so
noise and small deformations leave the reading alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from turbodiffusion.mini.attributes import SHAPES
from turbodiffusion.mini.segment import Layer
from turbodiffusion.mini.shapes import AREAS, coverage

GROWN = 1.35  # ratio of the radii at both ends; the world draws at least 1.75 after averaging
ORBIT_AREA = 0.025  # enclosed by the path; the smallest orbit encloses 0.062
HOP_HEIGHT = 0.09  # how far y leaves the line between its ends; the lowest hop is 0.19
MOVED = 0.10  # way between the ends; the shortest straight motion goes 0.26 after averaging
SHAPE_FRAMES = 5
SCALES = (0.94, 1.0, 1.06)


@dataclass
class Track:
    """Where an object is in the frames that show it: (n,) tensors, in frame heights."""

    x: Tensor
    y: Tensor
    radius: Tensor  # of the disc with the same area
    frame: Tensor


def track(layer: Layer) -> Track:
    """Centre of mass and size of an object over time."""
    _, height, width = layer.cover.shape
    frame = layer.visible().nonzero()[:, 0]
    columns, rows = layer.cover.sum(dim=1)[frame], layer.cover.sum(dim=2)[frame]
    area = rows.sum(dim=1)
    x = columns @ (torch.arange(width) + 0.5) / area / height
    y = rows @ (torch.arange(height) + 0.5) / area / height
    return Track(x, y, (area / math.pi).sqrt() / height, frame)


def read_motion(path: Track) -> str:
    """The motion of a track, one of ``MOTIONS``."""
    n = max(1, round(len(path.x) / 6))
    grown = float(path.radius[-n:].mean() / path.radius[:n].mean())
    if grown > GROWN:
        return "growing"
    if grown < 1 / GROWN:
        return "shrinking"
    x, y = path.x, path.y
    dx, dy = float(x[-n:].mean() - x[:n].mean()), float(y[-n:].mean() - y[:n].mean())
    net = math.hypot(dx, dy)
    wide, high = float(x.max() - x.min()), float(y.max() - y.min())
    enclosed = float(0.5 * (x * y.roll(-1) - y * x.roll(-1)).sum().abs())
    if enclosed > ORBIT_AREA and net < 0.6 * max(wide, high):
        return "circling"
    chord = torch.lerp(y[:n].mean(), y[-n:].mean(), torch.linspace(0, 1, len(y)))
    if float((y - chord).abs().max()) > HOP_HEIGHT and abs(dy) < 0.5 * high and wide < high:
        return "bouncing"
    if net < MOVED:
        return "staying still"
    if abs(dx) > abs(dy):
        return "moving right" if dx > 0 else "moving left"
    return "moving down" if dy > 0 else "moving up"


@dataclass
class Crops:
    """An object and its surroundings in a few frames; n frames, S the side in pixels.

    Attributes:
        at: (frame, row, column) indices of the pixels, for any (F, H, W) tensor of the clip.
        known: (n, S, S) 1 where a pixel lies inside the frame and no other object covers it.
        mask: (n, S, S) share of each pixel that the object covers, 0 where not known.
        x, y: (n, 1, S) and (n, S, 1) pixel centres relative to the object's centre.
        radius: (n,) of the disc with the object's area, in pixels.
    """

    at: tuple[Tensor, Tensor, Tensor]
    known: Tensor
    mask: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor

    def template(self, shape: int, scales: tuple[float, ...] = (1.0,)) -> Tensor:
        """(scales, n, S, S): coverage of a shape with the object's centre and scaled area."""
        sizes = torch.tensor(scales)[:, None, None, None] * self.radius[:, None, None]
        area = math.sqrt(math.pi / AREAS[shape])
        return coverage(shape, self.x, self.y, sizes * area) * self.known


def crops(layer: Layer, path: Track, others: list[Layer], margin: int = 2) -> Crops:
    """Cut an object out of a few frames, with ``margin`` pixels around its largest template.

    Pixels of other objects say nothing about this one and are left out.
    """
    cover = layer.cover
    _, height, width = cover.shape
    pick = torch.linspace(0, len(path.frame) - 1, min(SHAPE_FRAMES, len(path.frame))).round().long()
    frame, radius = path.frame[pick], path.radius[pick] * height
    cx, cy = path.x[pick] * height, path.y[pick] * height
    side = int(2 * math.ceil(float(radius.max()) * math.sqrt(math.pi / min(AREAS)) + margin))
    left, top = (cx - side / 2).round().long(), (cy - side / 2).round().long()
    columns, rows = left[:, None] + torch.arange(side), top[:, None] + torch.arange(side)
    inside = ((columns >= 0) & (columns < width))[:, None, :] & ((rows >= 0) & (rows < height))[
        :, :, None
    ]
    at = (
        frame[:, None, None],
        rows.clamp(0, height - 1)[:, :, None],
        columns.clamp(0, width - 1)[:, None, :],
    )
    known = inside.float()
    for other in others:
        known = known * (other.cover[at] < 0.1)
    x, y = (columns + 0.5 - cx[:, None])[:, None, :], (rows + 0.5 - cy[:, None])[:, :, None]
    return Crops(at, known, cover[at] * known, x, y, radius)


def read_shape(layer: Layer, path: Track, others: list[Layer]) -> tuple[str, Tensor]:
    """The shape whose template overlaps best, and its overlap (soft intersection ÷ union).

    Templates are the world's own shapes at the measured centre and area, in a few frames; the
    overlap is given for each of these.
    """
    cut = crops(layer, path, others)
    fits = []
    for shape in range(len(AREAS)):
        template = cut.template(shape, SCALES)
        both = torch.minimum(cut.mask, template).sum(dim=(2, 3))
        either = cut.mask.sum(dim=(1, 2)) + template.sum(dim=(2, 3)) - both
        fits.append((both / either.clamp(min=1e-6)).amax(dim=0))
    best = max(range(len(fits)), key=lambda shape: float(fits[shape].mean()))
    return SHAPES[best], fits[best]
