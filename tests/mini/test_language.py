"""What a person writes becomes what the embedded model was trained on, or a warning."""

import pytest
import torch

from turbodiffusion.mini import world
from turbodiffusion.mini.attributes import BACKGROUNDS, COLOURS, MAX_OBJECTS, MOTIONS, SHAPES
from turbodiffusion.mini.language import read_prompt
from turbodiffusion.mini.recipe import RECIPES, recipe
from turbodiffusion.mini.vocabulary import build_tokenizer
from turbodiffusion.models.text_encoder import Tokenizer


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        (
            "a red circle moving right on a black background",
            "a red circle moving right on a black background",
        ),
        (
            "A red circle moves to the right, on a Grey background.",
            "a red circle moving right on a gray background",
        ),
        ("orange ring moved upwards", "an orange ring moving up"),
        ("the blue star stays still", "a blue star staying still"),
        (
            "On an ocean background a white cross and a yellow square bounced",
            "a white cross and a yellow square bouncing on an ocean gradient background",
        ),
        ("magenta triangle", "a magenta triangle"),
        ("a green object shrinking", "a green shape shrinking"),
    ],
)
def test_understood_prompts_are_put_plainly(prompt, wanted):
    text, notes = read_prompt(prompt)
    assert text == wanted
    assert notes == []
    assert world.parse(text) == world.parse(prompt)


def test_unknown_words_are_named_with_the_vocabulary():
    text, notes = read_prompt("A purple elephant and a red circle moving left, purple!")
    assert text == "a red circle moving left", "bytes of unknown words mean nothing to the network"
    assert len(notes) == 1
    assert "'purple', 'elephant';" in notes[0] and f'"{text}"' in notes[0]
    for word in (*SHAPES, *COLOURS, *MOTIONS, *BACKGROUNDS):
        assert word in notes[0]
    _, notes = read_prompt("one two three four five six seven red circles ring")
    assert "'six' and others" in notes[0]


def test_a_real_prompt_gets_what_little_is_understood():
    text, notes = read_prompt("A stylish woman walks down a Tokyo street")
    assert text == "a shape moving down"
    assert "'woman'" in notes[0] and "'tokyo'" in notes[0]


@pytest.mark.parametrize(
    "prompt", ["", "   ", "!?", "an astronaut rides a horse", "黒い猫", "on black"]
)
def test_prompts_that_say_nothing_of_this_world(prompt):
    text, notes = read_prompt(prompt)
    assert text == prompt
    assert len(notes) == 1 and "finds nothing it knows" in notes[0] and "circle" in notes[0]


@pytest.mark.parametrize(
    ("prompt", "note"),
    [
        ("a gray circle on a red background", "There is no red background."),
        ("a red circle on a green background", "There is no green background."),
        ("a red circle on a black and gray background", "black and gray"),
    ],
)
def test_what_cannot_be_met_is_said(prompt, note):
    _, notes = read_prompt(prompt)
    assert any(note in text for text in notes), notes


def test_colours_that_do_not_show_are_said():
    pairs = [(c, b) for c in range(len(COLOURS)) for b in range(len(BACKGROUNDS))]
    excluded = [pair for pair in pairs if world.is_excluded(*pair)]
    assert excluded
    for c, b in pairs:
        text, notes = read_prompt(f"a {COLOURS[c]} ring on a {BACKGROUNDS[b]} background")
        assert world.parse(text).objects[0].colour == COLOURS[c], "it is tried all the same"
        said = [f"{COLOURS[c]} is hardly visible on {BACKGROUNDS[b]}."]
        assert notes == (said if (c, b) in excluded else [])


def test_a_third_object_is_left_out_and_said():
    prompt = "a red circle, a blue square, a green star and a white ring moving left on black"
    text, notes = read_prompt(prompt)
    assert any("4 objects" in note and "at most 2" in note for note in notes)
    assert len(world.parse(text).objects) == MAX_OBJECTS
    assert text == "a red circle and a blue square on a black background"


@pytest.mark.parametrize("size", RECIPES)
def test_every_plain_caption_fits_the_text_encoder(size, tmp_path):
    """The longest things that can be said keep their end mark within ``text_len``."""
    length = recipe(size).card.text.text_len
    tokenizer = Tokenizer.from_file(
        build_tokenizer(list(world.WORDS), tmp_path / "t.json"), 4 * length
    )
    prompts = [
        f"{first} star {motion} and a {second} triangle {motion} on a sunset gradient background"
        for motion in MOTIONS
        for first, second in (("an orange", "magenta"), ("a yellow", "white"))
    ]
    prompts += [f"{p} and {p}" for p in prompts]  # four objects
    texts = [read_prompt(prompt)[0] for prompt in prompts]
    assert int(tokenizer(texts)[1].sum(1).max()) <= length


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("it moves left", "a shape moving left"),
        ("It is circling.", "a shape circling"),
        ("to the right", "a shape moving right"),
        ("the circle bounces", "a shape bouncing"),
        ("a red circle moving down on a black background", "a shape moving down"),
        ("a red circle growing and a blue square growing", "a shape growing"),
        ("stays still", "a shape staying still"),
    ],
)
def test_of_a_prompt_beside_an_image_the_motion_is_read(prompt, wanted):
    assert read_prompt(prompt, "i2v") == (wanted, [])


def test_what_an_image_cannot_be_told_is_said():
    text, notes = read_prompt("a red circle", "i2v")
    assert text == "a shape" and "names no motion" in notes[0] and "circling" in notes[0]
    assert read_prompt("", "i2v")[0] == "a shape"
    text, notes = read_prompt("a ring grows and a cross moves left", "i2v")
    assert text == "a shape growing" and "animates one object" in notes[0]
    text, notes = read_prompt("the zebra moves up", "i2v")
    assert text == "a shape moving up" and "'zebra'" in notes[0]


@pytest.mark.parametrize("motion", MOTIONS)
def test_frozen_encoder_tells_the_motions_apart(motion):
    """Full captions trained it; with the motion alone, each still has a vector of its own."""
    from turbodiffusion.weights.find import find
    from turbodiffusion.weights.load import load_text_encoder

    files, one = find("mini-teacher"), recipe("mini").card
    text = load_text_encoder(files.text_encoder, one.text, dtype=torch.float32)
    reader = Tokenizer.from_file(files.tokenizer, one.text.text_len)
    phrases = [f"a shape {name}" for name in MOTIONS]
    words = len(f"a shape {motion}".split())
    with torch.no_grad():
        rows = [text.encode(*reader([p]))[0, words - 1] for p in phrases]
    own = rows[MOTIONS.index(motion)]
    others = [r for r, name in zip(rows, MOTIONS, strict=True) if name != motion]
    nearest = max(torch.cosine_similarity(own, other, 0).item() for other in others)
    assert nearest < 0.7
