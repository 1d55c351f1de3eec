"""The language: every caption is read back, loosely written prompts are understood."""

import pytest
import torch

from turbodiffusion.mini import captions as language
from turbodiffusion.mini import world
from turbodiffusion.mini.attributes import Expected, ExpectedObject
from turbodiffusion.mini.world import parse

TEXT_LEN = 24  # tokens of the micro text encoder, with the end mark


def tokens(text: str) -> list[str]:
    return text.replace(",", " ,").replace(".", " .").split()


@pytest.mark.parametrize("form", language.FORMS)
@pytest.mark.parametrize("article", ["a", "the", ""])
@pytest.mark.parametrize("template", range(len(language.TEMPLATES)))
def test_every_template_is_read_back_and_fits(template, article, form):
    scenes = world.sample_scenes(120, 3, two_objects=0.5)
    for i in range(len(scenes)):
        text = world.caption(scenes, i, template, form=form, article=article)
        assert parse(text) == world.expected(scenes, i), text
        assert len(tokens(text + ".")) + 1 <= TEXT_LEN
        assert set(tokens(text)) <= {*world.WORDS, ","}


@pytest.mark.parametrize("drop", language.ATTRIBUTES)
@pytest.mark.parametrize("template", range(len(language.TEMPLATES)))
def test_a_dropped_attribute_is_open(template, drop):
    scenes = world.sample_scenes(60, 4, two_objects=0.5)
    for i in range(len(scenes)):
        got = parse(world.caption(scenes, i, template, drop))
        want = world.expected(scenes, i)
        objects = tuple(
            ExpectedObject(
                **{
                    key: None if key == drop else getattr(thing, key)
                    for key in ("colour", "shape", "motion")
                }
            )
            for thing in want.objects
        )
        assert got == Expected(None if drop == "background" else want.background, objects)


def test_training_captions_are_read_back_and_vary():
    scenes = world.sample_scenes(4000, 5)
    texts = world.captions(scenes, torch.Generator().manual_seed(1))
    assert texts == world.captions(scenes, torch.Generator().manual_seed(1))
    assert texts != world.captions(scenes, torch.Generator().manual_seed(2))
    dropped = 0
    seen = set()
    for i, text in enumerate(texts):
        got, want = parse(text), world.expected(scenes, i)
        assert got is not None and got.understood, text
        assert len(got.objects) == len(want.objects)
        pairs = [(got.background, want.background)]
        for a, b in zip(got.objects, want.objects, strict=True):
            pairs += [(a.colour, b.colour), (a.shape, b.shape), (a.motion, b.motion)]
        assert all(a is None or a == b for a, b in pairs), text
        dropped += any(a is None for a, _ in pairs)
        assert len(tokens(text)) + 1 <= TEXT_LEN
        seen |= set(tokens(text))
    assert 0.08 < dropped / len(texts) < 0.12
    assert seen == {*world.WORDS, ",", "."}, "every word of the table is trained"


def test_words_suit_the_tokenizer():
    assert len(world.WORDS) == len(set(world.WORDS)) <= 118
    assert all(word.isalpha() and word == word.lower() for word in world.WORDS)


RED_RIGHT = ExpectedObject("red", "circle", "moving right")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("a red circle moving right on a black background", Expected("black", (RED_RIGHT,))),
        ("A red circle moves right on a black background.", Expected("black", (RED_RIGHT,))),
        ("Red circle moved right", Expected(None, (RED_RIGHT,))),
        ("a red circle, moving to the right, on black", Expected("black", (RED_RIGHT,))),
        ("The RED circle moves rightwards!", Expected(None, (RED_RIGHT,))),
        (
            "a bouncing orange star on a grey background",
            Expected("gray", (ExpectedObject("orange", "star", "bouncing"),)),
        ),
        (
            "blue circle circles, white cross shrank on an ocean background",
            Expected(
                "ocean gradient",
                (
                    ExpectedObject("blue", "circle", "circling"),
                    ExpectedObject("white", "cross", "shrinking"),
                ),
            ),
        ),
        (
            "a red circle and a bouncing ring",
            Expected(
                None, (ExpectedObject("red", "circle"), ExpectedObject(None, "ring", "bouncing"))
            ),
        ),
        ("an object growing", Expected(None, (ExpectedObject(None, None, "growing"),))),
        ("sunset gradient background", Expected("sunset gradient")),
    ],
)
def test_loose_prompts(text, want):
    assert parse(text) == want


def test_canonical_words_are_all_trained():
    got = parse("grey background, Red circle moved to the right")
    assert got is not None
    assert world.canonical(got) == "a red circle moving right on a gray background"


def test_foreign_prompts_name_their_unknown_words():
    assert parse("ein Hund läuft am Strand") is None
    assert parse("") is None
    assert language.unknown_words("ein Hund läuft") == ["ein", "hund", "läuft"]
    got = parse("a purple elephant and a red circle growing")
    assert got is not None and not got.understood
    assert got.unknown == ("purple", "elephant")
    assert got.objects == (ExpectedObject("red", "circle", "growing"),)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a red circle, a blue square and a white star", "3 objects"),
        ("an orange star growing on a sunset background", "hardly visible"),
        ("a red circle on a blue background", "no blue background"),
        ("a red circle on a black and navy background", "Two backgrounds"),
    ],
)
def test_impossible_wishes_are_noted(text, part):
    got = parse(text)
    assert got is not None and not got.understood
    assert any(part in note for note in got.notes)


def test_motion_captions_tell_the_motion_and_nothing_else():
    scenes = world.sample_scenes(400, 7, two_objects=0)
    texts = language.motion_captions(scenes, torch.Generator().manual_seed(1))
    silent, words = 0, set()
    for text, motion in zip(texts, scenes.motion[:, 0].tolist(), strict=True):
        words |= set(text.replace(".", "").split())
        got = parse(text)
        (thing,) = got.objects
        assert got.background is None and thing.colour is None and thing.shape is None
        if thing.motion is None:
            silent += 1
        else:
            assert thing.motion == world.MOTIONS[motion], text
    assert 0.05 < silent / 400 < 0.15
    assert words <= set(world.WORDS), "the tokenizer of the frozen encoder has no others"
    assert len(set(texts)) > 40
    assert texts == language.motion_captions(scenes, torch.Generator().manual_seed(1))
    two = world.sample_scenes(20, 8, two_objects=1)
    assert all(len(parse(t).objects) == 1 for t in language.motion_captions(two, torch.Generator()))
