"""The procedural video world that the embedded model is trained on and measured with.

One or two plain shapes on a plain or graded background, each with a colour and a motion that its
caption names. Everything the caption does not name (start, radius, travel, growth, phase) is drawn
uniformly. Nothing is stored: clips are rendered from signed distances, on any device, at any size
and frame count. All lengths are fractions of the frame's side and time is the fraction ``u`` of the
clip, so the same scene at 17×64×64 and at 33×128×128 shows the same thing.

Letters: B scenes, K objects of a scene (2), F frames, H W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.mini.attributes import (
    BACKGROUNDS,
    COLOURS,
    MAX_OBJECTS,
    MOTIONS,
    SHAPES,
    Expected,
    ExpectedObject,
    is_held_out,
)
from turbodiffusion.mini.captions import WORDS, canonical, caption, captions, parse
from turbodiffusion.mini.shapes import coverage

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "MOTIONS",
    "SHAPES",
    "WORDS",
    "Expected",
    "ExpectedObject",
    "Scenes",
    "canonical",
    "caption",
    "captions",
    "describe_world",
    "expected",
    "is_excluded",
    "is_held_out",
    "parse",
    "paths",
    "render",
    "sample_scenes",
]

Split = Literal["train", "seen", "held_out", "all"]
RGB = tuple[float, float, float]

PALETTE: dict[str, RGB] = {
    "red": (0.90, 0.08, 0.10),
    "orange": (1.00, 0.52, 0.00),
    "yellow": (1.00, 0.95, 0.15),
    "green": (0.10, 0.78, 0.15),
    "cyan": (0.10, 0.92, 0.95),
    "blue": (0.15, 0.28, 1.00),
    "magenta": (0.95, 0.10, 0.90),
    "white": (1.00, 1.00, 1.00),
}
GRADIENTS: dict[str, tuple[RGB, RGB]] = {
    "black": ((0.00, 0.00, 0.00), (0.00, 0.00, 0.00)),
    "gray": ((0.45, 0.45, 0.45), (0.45, 0.45, 0.45)),
    "navy": ((0.03, 0.05, 0.30), (0.03, 0.05, 0.30)),
    "forest": ((0.04, 0.25, 0.10), (0.04, 0.25, 0.10)),
    "sunset gradient": ((0.35, 0.12, 0.45), (0.98, 0.60, 0.30)),
    "ocean gradient": ((0.35, 0.75, 0.85), (0.02, 0.15, 0.40)),
}
"""Colour at the top and the bottom edge; linear in between, constant along a row."""

MIN_CONTRAST = 0.35  # RGB distance that an object keeps from every row of its background
RADIUS = (9 / 64, 13 / 64)
TRAVEL = (18 / 64, 26 / 64)  # of the four straight motions
HOP = (12 / 64, 18 / 64)  # height of a bounce
HOPS = 2  # y(u) = start − hop·|sin(HOPS·π·u)|
ORBIT = (9 / 64, 13 / 64)  # x, y = centre + orbit·(cos, sin)(2π(phase + u)): one turn, clockwise
GROWTH = (1.9, 2.3)  # of the radius, linear in u; shrinking is the same backwards
SMALL_RADIUS = (6 / 64, 8 / 64)  # the small end of growing and shrinking
LARGE_RADIUS = 16 / 64  # the large end never exceeds this
MARGIN = 1 / 64  # free space between the path and the edge of the frame
PAIR_RANGE = 0.5  # with two objects lengths come from this lower part of each range
PAIR_DISTANCE = 0.75  # of the summed radii: two objects never come closer than this, if possible
PAIR_ROUNDS = 60  # redraws of the start positions until they keep that distance

_LEFT, _RIGHT, _UP, _DOWN, _BOUNCE, _CIRCLE, _GROW, _SHRINK, _STILL = range(len(MOTIONS))


@dataclass
class Scenes:
    """A batch of scenes; index fields are int64, lengths are float32 fractions of the side.

    Attributes:
        count: (B,) objects in the scene, 1 or 2; entries of absent objects have no meaning.
        background: (B,) index into ``BACKGROUNDS``.
        colour, shape, motion: (B, K) indices. The later object is drawn over the earlier one.
        start: (B, K, 2) x and y that the path is relative to (for circling the orbit's centre).
        radius: (B, K) radius at u = 0.
        travel: (B, K) way of a straight motion, height of a hop, radius of an orbit.
        growth: (B, K) radius at u = 1 over radius at u = 0.
        phase: (B, K) start of an orbit in turns.
    """

    count: Tensor
    background: Tensor
    colour: Tensor
    shape: Tensor
    motion: Tensor
    start: Tensor
    radius: Tensor
    travel: Tensor
    growth: Tensor
    phase: Tensor

    def __len__(self) -> int:
        return self.count.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Scenes:
        """Some of the scenes; an integer gives a batch of one."""
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def is_excluded(colour: int, background: int) -> bool:
    """Whether the colour comes closer than ``MIN_CONTRAST`` to any row of the background."""
    return not bool(_allowed_pairs()[colour, background])


@lru_cache(maxsize=1)
def _allowed_pairs() -> Tensor:
    """(colours, backgrounds) bool: pairs that occur."""
    colour_C13 = torch.tensor([PALETTE[name] for name in COLOURS])[:, None]
    rows_GR3 = torch.stack([background_rows(index, 65) for index in range(len(BACKGROUNDS))])
    nearest_CG = (colour_C13[:, None] - rows_GR3[None]).norm(dim=-1).amin(dim=-1)
    return nearest_CG >= MIN_CONTRAST


def background_rows(index: int, rows: int) -> Tensor:
    """(rows, 3) from the top edge to the bottom edge."""
    top, bottom = (torch.tensor(end) for end in GRADIENTS[BACKGROUNDS[index]])
    return torch.lerp(top, bottom, torch.linspace(0, 1, rows)[:, None])


def _offsets(motion: Tensor, travel: Tensor, phase: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """x and y of the path relative to its start; broadcasts, y downwards."""
    straight_x = (motion == _RIGHT).float() - (motion == _LEFT).float()
    straight_y = (motion == _DOWN).float() - (motion == _UP).float()
    angle = 2 * math.pi * (phase + u)
    circling = (motion == _CIRCLE).float()
    hop = (motion == _BOUNCE).float() * (HOPS * math.pi * u).sin().abs()
    x = straight_x * u + circling * angle.cos()
    y = straight_y * u + circling * angle.sin() - hop
    return travel * x, travel * y


def paths(scenes: Scenes, u_F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre x, centre y and radius, each (B, K, F), at the time fractions ``u_F`` in [0, 1]."""
    x, y = _offsets(
        scenes.motion[..., None], scenes.travel[..., None], scenes.phase[..., None], u_F
    )
    radius = scenes.radius[..., None] * (1 + (scenes.growth[..., None] - 1) * u_F)
    return scenes.start[..., 0, None] + x, scenes.start[..., 1, None] + y, radius


def sample_scenes(
    n: int,
    seed: int | torch.Generator,
    split: Split = "train",
    two_objects: float = 0.3,
) -> Scenes:
    """Draw ``n`` scenes on the CPU; the same seed gives the same scenes on every machine.

    Args:
        seed: an integer, or a CPU generator that is advanced.
        split: ``train`` and ``seen`` hold no held-out (colour, shape, motion) triple, in
            ``held_out`` every object is one, ``all`` does not care.
        two_objects: share of scenes with two objects, which always differ in colour.
    """
    if split not in ("train", "seen", "held_out", "all"):
        raise UsageError(
            "mini-split",
            f"There is no split {split!r}; splits are train, seen, held_out and all.",
            "Use one of these names.",
        )
    g = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    count = 1 + (torch.rand(n, generator=g) < two_objects).long()
    colour, shape, motion = _draw_triples((n, MAX_OBJECTS), split, g)
    while (clash := (colour[:, 0] == colour[:, 1]).nonzero()[:, 0]).numel():
        new = _draw_triples((len(clash),), split, g)
        colour[clash, 1], shape[clash, 1], motion[clash, 1] = new
    allowed = _allowed_pairs()
    second = torch.where(count == 2, colour[:, 1], colour[:, 0])
    free = allowed[colour[:, 0]] & allowed[second]
    background = (torch.rand(free.shape, generator=g) + free).argmax(dim=1)

    reach = torch.where(count == 2, PAIR_RANGE, 1.0)[:, None]

    def uniform(low: float | Tensor, high: float | Tensor) -> Tensor:
        return low + (high - low) * reach * torch.rand(n, MAX_OBJECTS, generator=g)

    radius, growth = uniform(*RADIUS), uniform(*GROWTH)
    small = uniform(SMALL_RADIUS[0], (LARGE_RADIUS / growth).clamp(max=SMALL_RADIUS[1]))
    grows, shrinks = motion == _GROW, motion == _SHRINK
    radius = torch.where(grows, small, torch.where(shrinks, small * growth, radius))
    travel, hop, orbit = uniform(*TRAVEL), uniform(*HOP), uniform(*ORBIT)
    travel = torch.where(motion == _BOUNCE, hop, torch.where(motion == _CIRCLE, orbit, travel))
    growth = torch.where(grows, growth, torch.where(shrinks, 1 / growth, 1.0))
    scenes = Scenes(
        count, background, colour, shape, motion, torch.zeros(n, MAX_OBJECTS, 2),
        radius, travel, growth, torch.zeros(n, MAX_OBJECTS),
    )  # fmt: skip
    _place(scenes, g)
    return scenes


def _draw_triples(
    shape: tuple[int, ...], split: Split, g: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Uniform (colour, shape, motion) indices of a split."""
    shapes = torch.randint(len(SHAPES), shape, generator=g)
    motions = torch.randint(len(MOTIONS), shape, generator=g)
    # 7c + 3s + 5m = 0 (mod 8) has the one solution c = 3s + 5m, because 7 = −1.
    held_out = (3 * shapes + 5 * motions) % 8
    if split == "held_out":
        return held_out, shapes, motions
    first = 0 if split == "all" else 1
    return (held_out + torch.randint(first, 8, shape, generator=g)) % 8, shapes, motions


def _place(scenes: Scenes, g: torch.Generator) -> None:
    """Draw phase and start so that paths stay inside and two objects keep apart; in place.

    Pairs are redrawn while they come too close; a pair that never fits keeps its best draw.
    """
    u = torch.linspace(0, 1, 17)
    rows, best = torch.arange(len(scenes)), torch.full((len(scenes),), -math.inf)
    for _ in range(PAIR_ROUNDS):
        some = scenes[rows]
        some.phase = torch.rand(len(rows), MAX_OBJECTS, generator=g)
        some.start = torch.zeros(len(rows), MAX_OBJECTS, 2)
        x, y, radius = paths(some, u)
        room = radius.amax(dim=-1) + MARGIN
        low = torch.stack([room - x.amin(dim=-1), room - y.amin(dim=-1)], dim=-1)
        high = torch.stack([1 - room - x.amax(dim=-1), 1 - room - y.amax(dim=-1)], dim=-1)
        some.start = low + (high - low) * torch.rand(low.shape, generator=g)
        x, y, radius = paths(some, u)
        gap = torch.hypot(x[:, 0] - x[:, 1], y[:, 0] - y[:, 1]) / radius.sum(dim=1)
        gap = gap.amin(dim=-1).masked_fill(some.count == 1, math.inf)
        better = gap > best[rows]
        best[rows[better]] = gap[better]
        scenes.phase[rows[better]] = some.phase[better]
        scenes.start[rows[better]] = some.start[better]
        rows = rows[best[rows] < PAIR_DISTANCE]
        if not rows.numel():
            return


def render(scenes: Scenes, frames: int, size: int) -> Tensor:
    """Render clips: (B, frames, size, size, 3) float32 in [0, 1] on the scenes' device.

    Edges are anti-aliased over one pixel. Frame ``f`` shows the time ``u = f / (frames − 1)``.
    """
    device = scenes.count.device
    u = torch.linspace(0, 1, frames, device=device)
    pixel = torch.arange(size, device=device) + 0.5
    x, y, radius = (length * size for length in paths(scenes, u))
    ends = torch.tensor([GRADIENTS[name] for name in BACKGROUNDS], device=device)[scenes.background]
    rows = torch.lerp(ends[:, None, 0], ends[:, None, 1], (pixel / size)[:, None])
    video = rows[:, None, :, None].expand(-1, frames, -1, size, -1).contiguous()
    palette = torch.tensor([PALETTE[name] for name in COLOURS], device=device)
    for k in range(MAX_OBJECTS):
        cover = torch.zeros(video.shape[:-1], device=device)
        for shape in range(len(SHAPES)):
            index = ((scenes.shape[:, k] == shape) & (scenes.count > k)).nonzero()[:, 0]
            if index.numel():
                dx = pixel - x[index, k, :, None, None]
                dy = pixel[:, None] - y[index, k, :, None, None]
                cover[index] = coverage(shape, dx, dy, radius[index, k, :, None, None])
        video.lerp_(palette[scenes.colour[:, k], None, None, None], cover[..., None])
    return video


def expected(scenes: Scenes, index: int) -> Expected:
    """Everything that is true of one scene, in the form a caption is parsed to."""
    objects = tuple(
        ExpectedObject(
            COLOURS[int(scenes.colour[index, k])],
            SHAPES[int(scenes.shape[index, k])],
            MOTIONS[int(scenes.motion[index, k])],
        )
        for k in range(int(scenes.count[index]))
    )
    return Expected(BACKGROUNDS[int(scenes.background[index])], objects)


def describe_world() -> str:
    """The world in print: values, colours, ranges, formulas, rules and words."""

    def rgb(value: RGB) -> str:
        return "(" + ", ".join(f"{channel:.2f}" for channel in value) + ")"

    def span(low_high: tuple[float, float]) -> str:
        return f"{low_high[0] * 64:g}–{low_high[1] * 64:g}"

    excluded = [
        f"{colour} on {background}"
        for c, colour in enumerate(COLOURS)
        for b, background in enumerate(BACKGROUNDS)
        if is_excluded(c, b)
    ]
    lines = [
        "Objects: " + ", ".join(SHAPES),
        "Motions: " + ", ".join(MOTIONS),
        "Colours (RGB from 0 to 1):",
        *(f"  {name:<16}{rgb(value)}" for name, value in PALETTE.items()),
        "Backgrounds (top edge, bottom edge; linear in between):",
        *(f"  {name:<16}{rgb(top)}, {rgb(end)}" for name, (top, end) in GRADIENTS.items()),
        f"Never shown (RGB distance below {MIN_CONTRAST}): " + ", ".join(excluded),
        "Lengths in 64ths of the side, drawn uniformly; u runs from 0 to 1 over the clip:",
        f"  radius {span(RADIUS)}; straight motions travel {span(TRAVEL)}, linear in u",
        f"  bouncing: y(u) = y0 - h·|sin({HOPS}·π·u)|, h {span(HOP)}",
        f"  circling: (x, y)(u) = centre + o·(cos, sin)(2π·(phase + u)), o {span(ORBIT)}",
        f"  growing: radius {span(SMALL_RADIUS)} times 1 to {GROWTH[0]}–{GROWTH[1]}, linear in u,"
        f" at most {LARGE_RADIUS * 64:g}; shrinking: the same backwards",
        f"  paths stay {MARGIN * 64:g} inside the frame",
        "Two objects differ in colour; the second is drawn over the first.",
        "Held out of training: (7·colour + 3·shape + 5·motion) mod 8 = 0, indices in the order"
        " above, from 0.",
        f"Words ({len(WORDS)}): " + " ".join(WORDS),
    ]
    return "\n".join(lines)
