"""Text keys and values are made once per prompt, expert and branch of guidance, not per step."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest

from tests.pipeline import tiny
from turbodiffusion import load
from turbodiffusion.models.dit import CrossAttention, WanDiT
from turbodiffusion.pipeline import Pipeline

PROMPT = "a red circle moving right"
LAYERS = tiny.T2V.dit.num_layers
IMAGE = np.zeros((32, 48, 3), np.uint8)


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    """How often the networks ran, embedded a text, and made its keys in a block."""
    found: Counter[str] = Counter()

    def count(owner: type, method: str, name: str) -> None:
        original = getattr(owner, method)

        def counted(*args, **kwargs):
            found[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, method, counted)

    count(WanDiT, "forward", "steps")
    count(WanDiT, "text_kv", "texts")
    count(CrossAttention, "keys_values", "keys")
    return found


def pipeline(name: str) -> Pipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(name, device="cpu")


@pytest.mark.parametrize("steps", [1, 4])
def test_few_steps(steps, models, calls):
    pipeline(tiny.T2V.name)(PROMPT, output_type="latent", num_inference_steps=steps)
    assert calls == {"steps": steps, "texts": 1, "keys": LAYERS}


def test_each_expert_once(models, calls):
    pipeline(tiny.I2V.name)(PROMPT, image=IMAGE, output_type="latent", num_inference_steps=4)
    assert calls == {"steps": 4, "texts": 2, "keys": 2 * LAYERS}


def test_both_branches_of_guidance_once(models, calls):
    pipe = pipeline(tiny.T2V.name)
    pipe(PROMPT, output_type="latent", baseline=True, num_inference_steps=3, guidance_scale=5.0)
    assert calls == {"steps": 6, "texts": 2, "keys": 2 * LAYERS}
    calls.clear()
    pipe(PROMPT, output_type="latent", baseline=True, num_inference_steps=3, guidance_scale=1.0)
    assert calls == {"steps": 3, "texts": 1, "keys": LAYERS}


def test_both_branches_of_each_expert_once(models, calls):
    pipeline(tiny.I2V.name)(
        PROMPT, image=IMAGE, output_type="latent", baseline=True, num_inference_steps=4,
        guidance_scale=3.0, guidance_scale_2=2.0, boundary=0.9,
    )  # fmt: skip
    assert calls == {"steps": 8, "texts": 4, "keys": 4 * LAYERS}


def test_each_prompt_of_a_batch_once(models, calls):
    prompts = [PROMPT, "a blue square"]
    pipeline(tiny.T2V.name)(prompts, output_type="latent", num_inference_steps=2)
    assert calls == {"steps": 4, "texts": 2, "keys": 2 * LAYERS}
