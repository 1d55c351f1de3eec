"""Requests against cards: what is refused, rounded, filled in, or said to be without effect."""

from __future__ import annotations

import math
import warnings

import pytest

from tests.pipeline.tiny import I2V, T2V
from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import CARDS
from turbodiffusion.pipeline.request import NEGATIVE, Request, resolve

RELEASED = CARDS["TurboWan2.1-T2V-1.3B-480P"]


def code_of(card=RELEASED, fit="refuse", **values) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(Request(**{"prompt": "x", **values}), card, fit)
    return caught.value.code


def test_defaults_come_from_the_card():
    full = resolve(Request("x"), RELEASED)
    assert (full.width, full.height, full.frames, full.steps) == (832, 480, 81, 4)
    assert full.sigma_max == 80 and full.boundary is None and full.guidance is None
    assert resolve(Request("x"), I2V).boundary == 0.9
    slow = resolve(Request("x", baseline=True), RELEASED)
    assert (slow.steps, slow.shift, slow.guidance, slow.solver) == (50, 8.0, 6.0, "unipc")
    assert slow.negative == NEGATIVE and slow.sigma_max is None
    assert resolve(Request("x"), CARDS["micro-teacher"]).negative == ""


@pytest.mark.parametrize(
    ("frames", "diffusers", "released"),
    [(80, 81, 77), (79, 77, 77), (78, 77, 77), (82, 81, 81), (2, 1, 1), (3, 1, 1), (4, 5, 1)],
)
def test_frames_round_as_users_expect(frames, diffusers, released):
    with pytest.warns(UserWarning, match=f"{frames} frames were asked for"):
        assert resolve(Request("x", frames=frames), RELEASED, "diffusers").frames == diffusers
    with pytest.warns(UserWarning, match=f"making {released}"):
        assert resolve(Request("x", frames=frames), RELEASED, "released").frames == released
    with pytest.raises(UsageError, match=r"4·n\+1") as caught:
        resolve(Request("x", frames=frames), RELEASED)
    low = (frames - 1) // 4 * 4 + 1
    assert caught.value.fix == f"Use {low} or {low + 4}."


@pytest.mark.parametrize("frames", [1, 5, 81])
@pytest.mark.parametrize("fit", ["refuse", "diffusers", "released"])
def test_legal_frames_stay(frames, fit):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve(Request("x", frames=frames), RELEASED, fit).frames == frames


def test_sizes():
    with pytest.raises(UsageError, match="multiple of 16") as caught:
        resolve(Request("x", width=850), RELEASED)
    assert caught.value.fix == "Use 848 or 864."
    with pytest.warns(UserWarning, match="making 848"):
        assert resolve(Request("x", width=850), RELEASED, "diffusers").width == 848
    assert resolve(Request("x", width=2048), RELEASED).width == 2048
    assert code_of(width=2049) == code_of(height=4096, fit="released") == "size-too-large"
    assert code_of(height=0) == code_of(height=-16) == code_of(width=8, fit="released")
    assert resolve(Request("x", width=40, height=24), T2V).width == 40  # this card's multiple is 8


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"frames": 0}, "frames-illegal"),
        ({"frames": -3}, "frames-illegal"),
        ({"frames": 513}, "frames-too-many"),
        ({"steps": 0}, "steps-illegal"),
        ({"steps": 5}, "steps-illegal"),
        ({"steps": 0, "baseline": True}, "steps-illegal"),
        ({"seed": -1}, "sampling-seed"),
        ({"seed": 2**63}, "sampling-seed"),
        ({"sigma_max": 0.0}, "sigma-illegal"),
        ({"sigma_max": math.nan}, "setting-type"),
        ({"shift": 0.0, "baseline": True}, "shift-illegal"),
        ({"solver": "heun", "baseline": True}, "solver-unknown"),
        ({"boundary": 900, "card": I2V}, "boundary-illegal"),
        ({"guidance_low": 2.0}, "guidance-single-expert"),
        ({"prompt": "  "}, "prompt-empty"),
        ({"frames": "81"}, "setting-type"),
        ({"steps": 4.0}, "setting-type"),
        ({"steps": True}, "setting-type"),
        ({"seed": None}, "setting-type"),
        ({"ode": "yes"}, "setting-type"),
        ({"prompt": 7}, "setting-type"),
    ],
    ids=str,
)
def test_refused(values, code):
    assert code_of(**values) == code
    if code not in ("frames-illegal",):
        assert code_of(**values, fit="diffusers") == code


def test_most_frames():
    assert resolve(Request("x", frames=509), RELEASED).frames == 509  # 128 latent frames


@pytest.mark.parametrize(
    ("values", "card", "words"),
    [
        ({"guidance": 5.0, "negative": "ugly"}, RELEASED, "negative, guidance"),
        ({"ode": True, "baseline": True}, RELEASED, "ode"),
        ({"boundary": 0.5}, RELEASED, "boundary"),
        ({"sigma_max": 80.0}, CARDS["micro-teacher"], "sigma_max"),
        ({"guidance_low": 3.0}, I2V, "guidance_low"),
    ],
    ids=str,
)
def test_without_effect_is_said(values, card, words):
    with pytest.warns(UserWarning, match=f"^{words}: without effect"):
        full = resolve(Request("x", **values), card)
    assert not set(words.split(", ")) & {k for k, v in full.settings().items() if v is not False}


def test_guidance_one_is_what_distilled_weights_do():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve(Request("x", guidance=1.0), RELEASED).guidance is None


def test_guided():
    assert not resolve(Request("x"), RELEASED).guided
    assert resolve(Request("x", baseline=True), RELEASED).guided
    assert not resolve(Request("x", baseline=True, guidance=1.0), RELEASED).guided
    low = Request("x", baseline=True, guidance=1.0, guidance_low=2.0)
    assert resolve(low, I2V).guided


def test_resolved_requests_stay():
    for request in (Request("x"), Request("x", baseline=True)):
        for card in (RELEASED, I2V):
            full = resolve(request, card)
            assert resolve(full, card) == full
