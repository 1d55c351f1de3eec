"""How well a clip is drawn, beyond whether its caption can be read from it.

All numbers come from what the judge found on the way (:class:`~turbodiffusion.mini.judge.
Inspection`) and cost a few milliseconds on a CPU. Lengths are fractions of the frame's height,
brightness is in levels of 255.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from turbodiffusion.mini.attributes import SHAPES
from turbodiffusion.mini.judge import Inspection
from turbodiffusion.mini.measure import Crops, Track, crops
from turbodiffusion.mini.segment import Layer

RIM = 2 / 64
"""Half width of the band around an edge, of the frame's height."""
CORE = 0.9
"""Covered share from which a pixel shows the object's colour alone."""
LEVELS = 255.0


@dataclass(frozen=True)
class Thing:
    """One object of a clip.

    Attributes:
        overlap: mean intersection ÷ union with the best template, 0 to 1.
        sharpness: gradient energy at the edge of the object ÷ that of the template, 1 as rendered.
        jerk: root mean square second difference of the centre's path, of the frame's height.
        colour_drift: standard deviation of the colour over time, in levels.
        shape_drift: standard deviation of the overlap over time; templates follow the area.
        start: centre in the first frame that shows the object.
    """

    overlap: float
    sharpness: float
    jerk: float
    colour_drift: float
    shape_drift: float
    start: tuple[float, float]


def things(seen: Inspection) -> tuple[Thing, ...]:
    """The objects of an inspected clip, in the order of its reading."""
    found = []
    for i, (layer, path) in enumerate(zip(seen.layers, seen.paths, strict=True)):
        others = [other for other in seen.layers if other is not layer]
        shape, fit = SHAPES.index(seen.reading.objects[i].shape), seen.fits[i]
        found.append(
            Thing(
                overlap=float(fit.mean()),
                sharpness=sharpness(seen, layer, path, others, shape),
                jerk=jerk(path),
                colour_drift=colour_drift(seen.video, layer),
                shape_drift=float(fit.std(correction=0)),
                start=(float(path.x[0]), float(path.y[0])),
            )
        )
    return tuple(found)


def sharpness(
    seen: Inspection, layer: Layer, path: Track, others: list[Layer], shape: int
) -> float:
    """Squared differences of neighbours around the object's edge ÷ around the template's.

    The template is painted in the object's own colour on the clip's own background, so contrast
    cancels. A blur that widens an edge k times leaves about 1/k.
    """
    rim = max(1, round(RIM * seen.video.shape[2]))
    cut = crops(layer, path, others, margin=2 + 2 * rim)
    frame, rows, columns = cut.at
    pixels = seen.video[:, frame, rows, columns]
    behind = seen.background[:, rows, columns]
    core = cut.mask > CORE
    if not core.any():
        return math.nan
    colour = pixels[:, core].median(dim=1).values[:, None, None, None]
    template = cut.template(shape)[0]
    drawn = behind + template * (colour - behind)
    wanted = _energy(drawn, template, cut, rim)
    return _energy(pixels, cut.mask, cut, rim) / wanted if wanted > 0 else math.nan


def _energy(picture: Tensor, mask: Tensor, cut: Crops, rim: int) -> float:
    """Gradient energy of (3, n, S, S) within ``rim`` pixels of the edge of a mask (n, S, S)."""
    solid = (mask > 0.5).float()
    band = (spread(solid, rim) - (1 - spread(1 - solid, rim))) * cut.known
    across = (picture[..., 1:] - picture[..., :-1]).square().sum(dim=0)
    down = (picture[..., 1:, :] - picture[..., :-1, :]).square().sum(dim=0)
    return float(
        (across * band[..., 1:] * band[..., :-1]).sum()
        + (down * band[..., 1:, :] * band[..., :-1, :]).sum()
    )


def spread(mask: Tensor, reach: int) -> Tensor:
    """Largest value of (n, H, W) within ``reach`` pixels along each axis."""
    side = 2 * reach + 1
    rows = functional.max_pool2d(mask[:, None], (side, 1), 1, (reach, 0))
    return functional.max_pool2d(rows, (1, side), 1, (0, reach))[:, 0]


def jerk(path: Track) -> float:
    """Root mean square of x[i−1] − 2x[i] + x[i+1] over both axes; NaN for fewer than 3 frames."""
    step = path.frame.diff()
    usable = (step[1:] == 1) & (step[:-1] == 1)
    if not usable.any():
        return math.nan
    x, y = (axis.diff().diff()[usable] for axis in (path.x, path.y))
    return float((x.square() + y.square()).mean().sqrt())


def colour_drift(video: Tensor, layer: Layer) -> float:
    """Standard deviation over time of the object's mean colour, root mean square of the channels;
    in levels."""
    core = (layer.cover > CORE).float()
    size = core.sum(dim=(1, 2))
    shown = size > 0
    if int(shown.sum()) < 2:
        return math.nan
    colour = (video * core).sum(dim=(2, 3))[:, shown] / size[shown]
    return LEVELS * float(colour.var(dim=1, correction=0).mean().sqrt())


def flicker(seen: Inspection) -> float:
    """Mean difference of neighbouring frames where neither shows an object, in levels."""
    video = seen.video
    if video.shape[1] < 2:
        return math.nan
    cover = torch.zeros(video.shape[1:])
    for layer in seen.layers:
        cover = torch.maximum(cover, (layer.cover > 0).float())
    busy = spread(cover, max(1, round(RIM * video.shape[2])))
    free = 1 - torch.maximum(busy[1:], busy[:-1])
    if not free.any():
        return math.nan
    change = (video[:, 1:] - video[:, :-1]).abs().mean(dim=0)
    return LEVELS * float((change * free).sum() / free.sum())
