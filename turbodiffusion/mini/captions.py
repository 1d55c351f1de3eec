"""The language of the miniature world: captions out, attributes back in.

Four templates, three forms of the verb, and now and then another article, a full stop, or one
attribute left out, so that the text encoder has seen what :func:`parse` accepts. :func:`parse`
reads more than is ever written ("grey", "upwards", "moving to the left"); :func:`canonical` puts
such a prompt into the words that the embedded model was trained on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from turbodiffusion.mini.attributes import (
    BACKGROUNDS,
    COLOURS,
    MAX_OBJECTS,
    MOTIONS,
    SHAPES,
    Expected,
    ExpectedObject,
)

if TYPE_CHECKING:
    from turbodiffusion.mini.world import Scenes

_FIELDS = ("count", "background", "colour", "shape", "motion")
ATTRIBUTES = ("colour", "shape", "motion", "background")
TEMPLATES = (
    "{objects} on {background}",
    "there is {objects} on {background}",
    "on {background}, {objects}",
    "{objects} in front of {background}",
)
RELATIVE_TEMPLATE = 1  # the one that says "there is a red circle that moves left"
FORMS = ("moving", "moves", "moved")

# Verb of each motion in the order of FORMS, and the word that follows it.
_VERBS: tuple[tuple[tuple[str, str, str], str], ...] = (
    (("moving", "moves", "moved"), "left"),
    (("moving", "moves", "moved"), "right"),
    (("moving", "moves", "moved"), "up"),
    (("moving", "moves", "moved"), "down"),
    (("bouncing", "bounces", "bounced"), ""),
    (("circling", "circles", "circled"), ""),
    (("growing", "grows", "grew"), ""),
    (("shrinking", "shrinks", "shrank"), ""),
    (("staying", "stays", "stayed"), "still"),
)
_PHRASES = tuple(
    tuple(f"{verb} {word}".strip() for verb in verbs) for verbs, word in _VERBS
)  # [motion][form]
_NO_SHAPE = ("shape", "object")  # stand for the noun where the shape is left out

_GRAMMAR = ("a", "an", "and", "background", "front", "in", "is", "of", "on", "that", "the", "there")

WORDS: list[str] = list(
    dict.fromkeys(
        [*_GRAMMAR, *_NO_SHAPE, *COLOURS, *SHAPES]
        + [word for name in BACKGROUNDS for word in name.split()]
        + [word for forms in _PHRASES for phrase in forms for word in phrase.split()]
    )
)
"""Closed list of single words of training captions, beside the comma and the full stop."""

# Chances of the variants in training captions.
DROP = 0.10
OTHER_FORM = 0.30
OTHER_ARTICLE = 0.10
FULL_STOP = 0.10


def _with_article(phrase: str, article: str) -> str:
    if article == "a" and phrase[0] in "aeio":
        article = "an"
    return f"{article} {phrase}".lstrip()


def compose(expected: Expected, template: int = 0, form: str = "moving", article: str = "a") -> str:
    """Write a caption; attributes that are ``None`` are left out.

    Args:
        template: index into ``TEMPLATES``.
        form: form of the verbs, one of ``FORMS``.
        article: of the nouns, "a" (or "an"), "the" or empty.
    """
    relative = template == RELATIVE_TEMPLATE
    if relative and form == "moving":
        form = "moves"
    parts = []
    for thing in expected.objects:
        noun = thing.shape or _NO_SHAPE[form != "moving"]
        text = _with_article(f"{thing.colour or ''} {noun}".lstrip(), article)
        if thing.motion is not None:
            text += " that" * relative
            text += " " + _PHRASES[MOTIONS.index(thing.motion)][FORMS.index(form)]
        parts.append(text)
    objects = " and ".join(parts)
    if expected.background is None:
        return ("there is " if relative else "") + objects
    background = _with_article(expected.background + " background", article)
    return TEMPLATES[template].format(objects=objects, background=background)


def canonical(expected: Expected) -> str:
    """The plainest caption for what a prompt asks; the embedded model knows it best."""
    return compose(expected)


def motion_only(expected: Expected) -> Expected:
    """What an image does not show of a prompt: how its first object moves."""
    return Expected(objects=tuple(ExpectedObject(motion=o.motion) for o in expected.objects[:1]))


def caption(
    scenes: Scenes, index: int, template: int = 0, drop: str | None = None, form: str = "moving",
    article: str = "a",
) -> str:  # fmt: skip
    """The caption of one scene; ``drop`` names one of ``ATTRIBUTES`` to leave out."""
    row = (getattr(scenes, name)[index].tolist() for name in _FIELDS)
    return compose(_expected(drop, *row), template, form, article)


def captions(scenes: Scenes, generator: torch.Generator) -> list[str]:
    """One training caption per scene, with all variants drawn from ``generator`` (CPU)."""
    n = len(scenes)
    chance = torch.rand(n, 4, generator=generator).tolist()
    template = torch.randint(len(TEMPLATES), (n,), generator=generator).tolist()
    dropped = torch.randint(len(ATTRIBUTES), (n,), generator=generator).tolist()
    other = torch.randint(2, (n, 2), generator=generator).tolist()
    columns = (getattr(scenes, name).tolist() for name in _FIELDS)
    out = []
    for i, row in enumerate(zip(*columns, strict=True)):
        drop = ATTRIBUTES[dropped[i]] if chance[i][0] < DROP else None
        form = FORMS[1 + other[i][0]] if chance[i][1] < OTHER_FORM else "moving"
        article = ("", "the")[other[i][1]] if chance[i][2] < OTHER_ARTICLE else "a"
        text = compose(_expected(drop, *row), template[i], form, article)
        out.append(text + "." * (chance[i][3] < FULL_STOP))
    return out


def motion_captions(scenes: Scenes, generator: torch.Generator) -> list[str]:
    """One caption per scene that tells the motion of its first object and nothing else.

    What moves is "a shape" or "an object", since an image shows which one; with the chance
    ``DROP`` the motion is left out as well. Variants are those of :func:`captions`.
    """
    n = len(scenes)
    chance = torch.rand(n, 4, generator=generator).tolist()
    forms = torch.randint(len(FORMS), (n,), generator=generator).tolist()
    article, there = torch.randint(2, (2, n), generator=generator).tolist()
    out = []
    for i, motion in enumerate(scenes.motion[:, 0].tolist()):
        thing = ExpectedObject(motion=None if chance[i][0] < DROP else MOTIONS[motion])
        template = RELATIVE_TEMPLATE * (there[i] and chance[i][1] < OTHER_FORM)
        form = FORMS[forms[i]] if chance[i][1] < 2 * OTHER_FORM else "moving"
        word = ("", "the")[article[i]] if chance[i][2] < OTHER_ARTICLE else "a"
        text = compose(Expected(objects=(thing,)), template, form, word)
        out.append(text + "." * (chance[i][3] < FULL_STOP))
    return out


def _expected(
    drop: str | None, count: int, background: int, colour: list[int], shape: list[int],
    motion: list[int],
) -> Expected:  # fmt: skip
    """The attributes of a scene from its indices, ``drop`` left out."""
    objects = tuple(
        ExpectedObject(
            None if drop == "colour" else COLOURS[colour[k]],
            None if drop == "shape" else SHAPES[shape[k]],
            None if drop == "motion" else MOTIONS[motion[k]],
        )
        for k in range(count)
    )
    return Expected(None if drop == "background" else BACKGROUNDS[background], objects)


_ARTICLES = ("a", "an", "the")
_MEANINGLESS = frozenset(
    [*_GRAMMAR, "gradient", "are", "was", "were", "which", "it", "to", "against", "over", "while"]
)
_NOUNS = {name: name for name in SHAPES} | {"shape": None, "object": None}
_BACKGROUND_WORDS = {name.split()[0]: name for name in BACKGROUNDS} | {"grey": "gray"}
_DIRECTIONS = {
    "left": 0, "right": 1, "up": 2, "down": 3, "leftward": 0, "rightward": 1, "upward": 2,
    "downward": 3, "leftwards": 0, "rightwards": 1, "upwards": 2, "downwards": 3,
}  # fmt: skip
_MOVE_WORDS = frozenset((*FORMS, "move"))
_MOTION_WORDS = {
    word: MOTIONS[index]
    for index, (verbs, _) in enumerate(_VERBS)
    for word in verbs
    if verbs[0] != "moving"
} | {"bounce": "bouncing", "grown": "growing", "shrunk": "shrinking", "still": "staying still",
     "stay": "staying still", "stands": "staying still", "standing": "staying still"}  # fmt: skip


def parse(text: str) -> Expected | None:
    """Read a prompt back into attributes.

    Articles, capital letters, full stops and the form of the verbs do not matter; objects are
    joined by "and" or a comma; what is not said is ``None``. Words outside the language are listed
    in ``unknown``.

    Returns:
        ``None`` if no word of the prompt says anything about this world.
    """
    reader = _Reader()
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?|,", text.lower())
    for position, word in enumerate(words):
        reader.read(word, words[position + 1] if position + 1 < len(words) else "")
    return reader.result()


class _Reader:
    """Goes through a prompt word by word and collects objects."""

    def __init__(self) -> None:
        self.background: str | None = None
        self.objects: list[dict[str, str | None]] = []
        self.open: dict[str, str | None] = {}
        self.joined = False  # an "and" or a comma has followed the open object
        self.unknown: list[str] = []
        self.notes: list[str] = []

    def read(self, word: str, following: str) -> None:
        if word in _BACKGROUND_WORDS:
            self._set_background(_BACKGROUND_WORDS[word])
        elif word in COLOURS and following == "background":
            self.notes.append(f"There is no {word} background.")
        elif word in COLOURS:
            self._close_if(self.joined or "noun" in self.open or "colour" in self.open)
            self.open["colour"] = word
        elif word in _NOUNS:
            self._close_if(self.joined or "noun" in self.open)
            self.open |= {"noun": word, "shape": _NOUNS[word]}
        elif word in _DIRECTIONS or word in _MOTION_WORDS:
            self._close_if(self.joined and "motion" in self.open)
            self.open["motion"] = _MOTION_WORDS.get(word) or MOTIONS[_DIRECTIONS[word]]
        elif word in _ARTICLES:
            self._close_if(self.joined and following not in _DIRECTIONS)  # not "to the left"
        elif word in ("and", ","):
            # "a red circle, moving left" still speaks of the circle: wait for what follows.
            self.joined = "noun" in self.open
        elif word not in _MEANINGLESS and word not in _MOVE_WORDS:
            self.unknown.append(word)

    def _set_background(self, name: str) -> None:
        if self.background not in (None, name):
            self.notes.append(f"Two backgrounds are named, {self.background} and {name}.")
        self.background = name

    def _close_if(self, condition: bool) -> None:
        if condition and self.open:
            self.objects.append(self.open)
        if condition:
            self.open, self.joined = {}, False

    def result(self) -> Expected | None:
        self._close_if(True)
        if not self.objects and self.background is None:
            return None
        if len(self.objects) > MAX_OBJECTS:
            self.notes.append(f"{len(self.objects)} objects are named; at most {MAX_OBJECTS} fit.")
        for thing in self.objects:
            if _blends(thing.get("colour"), self.background):
                self.notes.append(f"{thing['colour']} is hardly visible on {self.background}.")
        objects = tuple(
            ExpectedObject(thing.get("colour"), thing.get("shape"), thing.get("motion"))
            for thing in self.objects
        )
        return Expected(self.background, objects, tuple(self.unknown), tuple(self.notes))


def _blends(colour: str | None, background: str | None) -> bool:
    from turbodiffusion.mini.world import is_excluded  # world imports this module

    if colour is None or background is None:
        return False
    return is_excluded(COLOURS.index(colour), BACKGROUNDS.index(background))


def unknown_words(text: str) -> list[str]:
    """Words of a prompt that are outside the language, in order."""
    reader = _Reader()
    for word in re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower()):
        reader.read(word, "")
    return reader.unknown


def vocabulary_help() -> str:
    """What the language can say, in one paragraph for a warning."""
    return (
        f"It knows the shapes {', '.join(SHAPES)}; the colours {', '.join(COLOURS)}; the motions "
        f"{', '.join(MOTIONS)}; and the backgrounds {', '.join(BACKGROUNDS)}."
    )
