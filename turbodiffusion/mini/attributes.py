"""Names of everything that can be said about a clip of the miniature world.

The order of each tuple is part of the world: scenes store indices into them and the held-out rule
is arithmetic on those indices. :class:`Expected` is what a caption asks for; an attribute that the
caption leaves open is ``None`` and any value of it is right.
"""

from __future__ import annotations

from dataclasses import dataclass

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "magenta", "white")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "bouncing",
    "circling",
    "growing",
    "shrinking",
    "staying still",
)
BACKGROUNDS = ("black", "gray", "navy", "forest", "sunset gradient", "ocean gradient")
MAX_OBJECTS = 2


@dataclass(frozen=True)
class ExpectedObject:
    """One object a caption asks for; ``None`` leaves the attribute open."""

    colour: str | None = None
    shape: str | None = None
    motion: str | None = None


@dataclass(frozen=True)
class Expected:
    """What a caption asks for.

    ``unknown`` lists the words outside the world's language, in order of appearance; ``notes`` are
    sentences about requests that are understood but cannot be met (a third object, a colour that
    never appears on the background).
    """

    background: str | None = None
    objects: tuple[ExpectedObject, ...] = ()
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def understood(self) -> bool:
        """True where the embedded model can be expected to follow the caption."""
        return bool(self.objects) and not self.unknown and not self.notes


def is_held_out(colour: int, shape: int, motion: int) -> bool:
    """Whether a triple of indices is kept out of training: ``(7c + 3s + 5m) mod 8 == 0``.

    For every shape and motion exactly one of the eight colours is held out, hence 12.5 % of all
    triples, and every colour, shape and motion still occurs in training.
    """
    return (7 * colour + 3 * shape + 5 * motion) % 8 == 0
