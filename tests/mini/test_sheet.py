"""The contact sheet shows held-out prompts, with marks that are the judge's."""

from types import SimpleNamespace

import pytest
import torch

from turbodiffusion.mini import evaluate, sheet, world
from turbodiffusion.mini.recipe import recipe


@pytest.fixture
def drawn(monkeypatch):
    """What reaches the drawing, for a sampler that shows the truth but draws all in red."""
    given = {}

    def sample(pipe, prompts, seed, **settings):
        given.setdefault("batches", []).append((len(prompts), seed, settings))
        scenes = evaluate.scenes_of("held_out", 1, 5)
        first = seed - evaluate.SEED
        part = scenes[first : first + len(prompts)]
        part.colour = torch.zeros_like(part.colour)
        return (world.render(part, 17, 64) * 255).round().to(torch.uint8), 100

    def contact_sheet(videos, captions, path, **more):
        given.update(videos=videos, captions=captions, **more)
        return path

    monkeypatch.setattr(evaluate, "sample", sample)
    monkeypatch.setattr(sheet, "contact_sheet", contact_sheet)
    pipe = SimpleNamespace(card=recipe("micro").card)
    done = []
    path, right = sheet.draw_sheet(pipe, "s.png", 5, batch=2, on_batch=done.append, steps=7)
    return SimpleNamespace(**given, path=path, right=right, done=done)


def test_prompts_are_held_out_and_in_order(drawn):
    scenes = evaluate.scenes_of("held_out", 1, 5)
    assert drawn.captions == evaluate.prompts_of(scenes)
    assert drawn.batches == [
        (n, evaluate.SEED + first, {"steps": 7}) for n, first in ((2, 0), (2, 2), (1, 4))
    ]
    assert drawn.done == [2, 2, 1]
    assert "never seen" in drawn.title and "100 network calls" in drawn.title
    assert len(drawn.videos) == 5 and drawn.videos[0].shape == (17, 64, 64, 3)


def test_marks_are_the_judges(drawn):
    scenes = evaluate.scenes_of("held_out", 1, 5)
    red = [int(scenes.colour[i, 0]) == 0 for i in range(5)]
    assert not all(red)
    for mark, is_red in zip(drawn.marks, red, strict=True):
        assert list(mark) == ["background", "colour", "shape", "motion"]
        assert mark["colour"] is is_red
        assert mark["background"] is True
    assert drawn.right["background"] == 5 and drawn.right["colour"] == sum(red)
