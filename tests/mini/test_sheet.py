"""The contact sheet shows held-out prompts, with marks that are the judge's."""

from types import SimpleNamespace

import pytest
import torch

from turbodiffusion.mini import evaluate, sheet, world
from turbodiffusion.mini.prompts import SEED, prompts_of, scenes_of
from turbodiffusion.mini.recipe import recipe


@pytest.fixture
def drawn(monkeypatch):
    """What reaches the drawing, for a sampler that shows the truth but draws all in red."""
    given = {}

    def sample(pipe, prompts, seed, **settings):
        given.setdefault("batches", []).append((len(prompts), seed, settings))
        scenes = scenes_of("held_out", 1, 5)
        first = seed - SEED
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
    scenes = scenes_of("held_out", 1, 5)
    assert drawn.captions == prompts_of(scenes)
    assert drawn.batches == [
        (n, SEED + first, {"steps": 7}) for n, first in ((2, 0), (2, 2), (1, 4))
    ]
    assert drawn.done == [2, 2, 1]
    assert "never seen" in drawn.title and "100 network calls" in drawn.title
    assert len(drawn.videos) == 5 and drawn.videos[0].shape == (17, 64, 64, 3)


def test_marks_are_the_judges(drawn):
    scenes = scenes_of("held_out", 1, 5)
    red = [int(scenes.colour[i, 0]) == 0 for i in range(5)]
    assert not all(red)
    for mark, is_red in zip(drawn.marks, red, strict=True):
        assert list(mark) == ["background", "colour", "shape", "motion"]
        assert mark["colour"] is is_red
        assert mark["background"] is True
    assert drawn.right["background"] == 5 and drawn.right["colour"] == sum(red)


def test_a_prompt_goes_through_all_rows(monkeypatch):
    """Rows of one prompt stand together, each with its count and interval."""
    given = {}

    def contact_sheet(videos, captions, path, **more):
        given.update(videos=videos, captions=captions, path=path, **more)
        return path

    monkeypatch.setattr(sheet, "contact_sheet", contact_sheet)
    scenes = scenes_of("held_out", 1, 1)
    prompt = prompts_of(scenes)[0]
    truth = (world.render(scenes, 17, 64)[0] * 255).round().to(torch.uint8).numpy()
    shares = (("rendered truth", 0, 1.0), ("rcm-4", 4, 0.5), ("rcm-4", 4, 1.0))
    rows = [
        {"row": name, "network_calls": calls, "joint": {"accuracy": right, "samples": 4}}
        for name, calls, right in shares
    ]
    examples = {prompt: {"truth": truth, "rcm-4": truth * 0}}
    assert sheet.draw_rows(examples, {"model": "micro", "rows": rows}, "rows.png") == "rows.png"
    first, second = given["captions"]
    assert prompt in first and "rendered truth: 100.0 % right" in first
    assert second == "rcm-4, 4 calls: 75.0 % right (41–93) of 8"
    assert all(given["marks"][0].values()) and not any(given["marks"][1].values())
