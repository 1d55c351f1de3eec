"""Pixels to objects: which background, which colours, and how much of each pixel they cover.

First half of the judge; it knows the world's palette and gradients but nothing of the prompt.
Videos are planar here, (3, F, H, W) float32, because every step works channel by channel.

A pixel at an edge is a mixture of object and background. It is explained by an object of colour
``c`` over background ``b`` when it lies near the line from ``b`` to ``c``, and its place on that
line is the covered share. This is what keeps the rim of a red disc on a sunset from being read as
an orange object, and gives areas and centres with sub-pixel precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from turbodiffusion.mini.attributes import BACKGROUNDS, COLOURS, MAX_OBJECTS
from turbodiffusion.mini.world import PALETTE, background_rows

BACKGROUND_ERROR = 0.15  # median error above which no background of the world is recognised
BACKGROUND_DRIFT = 0.20  # a pixel follows the clip's own median up to this far from the template
CONTRAST = 0.22  # largest channel difference to the background from which a pixel is foreground
COLOUR_ERROR = 0.40  # RGB distance to the palette up to which a pixel has a colour
EXPLAINED = 0.16  # RGB distance to the line background–object up to which it explains a pixel
MIN_AREA = 8 / 64**2  # of the frame; below it the object is not visible
MIN_CORE = 3 / 64**2  # same for pixels whose four neighbours have their colour
MIN_VISIBLE = 2 / 3  # of the frames an object must be seen in


@dataclass
class Layer:
    """One object: its colour and the covered share of every pixel, (F, H, W) in [0, 1]."""

    colour: str
    cover: Tensor

    def visible(self) -> Tensor:
        """(F,) bool: frames in which enough of the object is seen."""
        return self.cover.mean(dim=(1, 2)) >= MIN_AREA


@lru_cache(maxsize=8)
def _templates(height: int) -> Tensor:
    """(G, 3, height): the backgrounds, constant along rows."""
    return torch.stack([background_rows(i, height) for i in range(len(BACKGROUNDS))]).transpose(
        1, 2
    )


def find_background(video: Tensor) -> tuple[str | None, Tensor]:
    """Name of the nearest background and the background image (3, H, W) under the objects.

    The name is ``None`` where no background of the world comes near the clip. The image is the
    temporal median where that agrees with the template and the template elsewhere, so a tint or a
    slow shade that a network adds is not taken for an object.
    """
    _, frames, height, width = video.shape
    some = video[:, torch.linspace(0, frames - 1, 5).round().long()]
    step = max(1, height // 32)
    coarse = some[:, :, ::step, ::step]
    templates = _templates(height)
    error = (coarse - templates[:, :, None, ::step, None]).abs_().mean(dim=1)
    error = error.flatten(1).median(dim=1).values
    best = int(error.argmin())
    template = templates[best][..., None].expand(-1, -1, width)
    median = _median_of_five(some)
    agrees = (median - template).abs().amax(dim=0) < BACKGROUND_DRIFT
    image = torch.where(agrees, median, template)
    return (BACKGROUNDS[best] if error[best] < BACKGROUND_ERROR else None), image


def _median_of_five(video: Tensor) -> Tensor:
    """Median over the five frames of (3, 5, H, W); ten comparisons cost a tenth of a sort."""
    a, b, c, d, e = video.unbind(dim=1)
    low = torch.maximum(torch.minimum(a, b), torch.minimum(c, d))
    high = torch.minimum(torch.maximum(a, b), torch.maximum(c, d))
    return torch.maximum(torch.minimum(low, high), torch.minimum(e, torch.maximum(low, high)))


def find_objects(video: Tensor, background: Tensor) -> list[Layer]:
    """The objects of a clip, at most two, the larger first."""
    _, frames, height, width = video.shape
    difference = (video - background[:, None]).abs_()
    foreground = torch.maximum(torch.maximum(difference[0], difference[1]), difference[2])
    where = (foreground.view(-1) > CONTRAST).nonzero()[:, 0]
    if not where.numel():
        return []
    pixels = video.view(3, -1)[:, where].T.contiguous()
    behind = background.reshape(3, -1)[:, where % (height * width)].T.contiguous()
    frame = where // (height * width)
    palette = torch.tensor([PALETTE[name] for name in COLOURS])
    nearest = torch.cdist(pixels, palette, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    kind = nearest.indices.masked_fill(nearest.values > COLOUR_ERROR, -1)

    found: list[tuple[Tensor, Tensor, Tensor]] = []  # colour, covered share, distance to the line
    while len(found) < MAX_OBJECTS:
        usable = _core(kind, where, (frames, height, width))
        table = torch.bincount(
            frame[usable] * len(COLOURS) + kind[usable], minlength=frames * len(COLOURS)
        ).view(frames, len(COLOURS))
        seen = (table >= MIN_CORE * height * width).float().mean(dim=0) >= MIN_VISIBLE
        total = table.sum(dim=0) * seen
        if not total.any():
            break
        strongest = total.argmax()
        colour = pixels[usable & (kind == strongest)].median(dim=0).values
        share, distance = _mixture(pixels, behind, colour)
        found.append((colour, share, distance))
        kind = kind.masked_fill((distance < EXPLAINED) | (kind == strongest), -1)
    return _layers(found, where, palette, (frames, height, width))


def _core(kind: Tensor, where: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(P,) bool: pixels of some kind whose four neighbours are of the same."""
    full = torch.full(shape, -1, dtype=torch.int8)
    full.view(-1)[where] = kind.to(torch.int8)
    same = torch.zeros(shape, dtype=torch.bool)
    middle = full[:, 1:-1, 1:-1]
    same[:, 1:-1, 1:-1] = (
        (full[:, :-2, 1:-1] == middle)
        & (full[:, 2:, 1:-1] == middle)
        & (full[:, 1:-1, :-2] == middle)
        & (full[:, 1:-1, 2:] == middle)
    )
    return same.view(-1)[where] & (kind >= 0)


def _mixture(pixels: Tensor, behind: Tensor, colour: Tensor) -> tuple[Tensor, Tensor]:
    """Share of ``colour`` in each pixel and RGB distance to the nearest mixture with it."""
    line = colour - behind
    offset = pixels - behind
    share = ((offset * line).sum(dim=1) / (line * line).sum(dim=1).clamp(min=1e-4)).clamp_(0, 1)
    return share, (offset - share[:, None] * line).norm(dim=1)


def _layers(
    found: list[tuple[Tensor, Tensor, Tensor]],
    where: Tensor,
    palette: Tensor,
    shape: tuple[int, int, int],
) -> list[Layer]:
    """Give every pixel to the object that explains it best, then drop what is hardly seen."""
    if not found:
        return []
    layers = []
    for index, (colour, share, distance) in enumerate(found):
        owned = distance < COLOUR_ERROR
        for other, (_, _, rival) in enumerate(found):
            if other != index:
                owned &= (distance < rival) if other > index else (distance <= rival)
        cover = torch.zeros(shape)
        cover.view(-1)[where] = share * owned
        name = COLOURS[int((palette - colour).norm(dim=1).argmin())]
        layer = Layer(name, cover)
        if layer.visible().float().mean() >= MIN_VISIBLE:
            layers.append(layer)
    return layers
