"""The image condition against its definition, and the golden runs through the pipeline's stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.test_dit import build
from tests.golden.vectors import Golden, golden_files, golden_id, load_golden, relative_l2
from tests.pipeline import tiny
from turbodiffusion import load
from turbodiffusion.errors import SetupError, UsageError
from turbodiffusion.models.cards import ModelCard
from turbodiffusion.pipeline import Pipeline, Request
from turbodiffusion.pipeline.request import resolve


@pytest.fixture
def i2v(models) -> Pipeline:
    with pytest.warns(UserWarning, match="accuracy of 8-bit attention"):
        return load(tiny.I2V.name, device="cpu")


def test_condition_is_mask_and_encoded_first_frame(i2v):
    """dit.md section 6: four mask channels, one at latent frame 0, then the latents of the clip
    [image, zeros in [-1, 1]]."""
    image = torch.rand(3, 32, 48) * 2 - 1
    y = i2v.condition(image, 9)
    assert y.shape == (1, 12, 3, 8, 12) and y.dtype == torch.bfloat16
    assert (y[:, :4, 0] == 1).all() and (y[:, :4, 1:] == 0).all()
    clip = torch.cat([image[None, :, None], torch.zeros(1, 3, 8, 32, 48)], 2).bfloat16()
    with torch.no_grad():
        assert torch.equal(y[:, 4:], i2v.vae.encode(clip).bfloat16())


def test_image_is_prepared_on_eight_bits(i2v):
    """Bilinear with antialias on uint8, then (x/255 - 0.5)/0.5."""
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    request = resolve(Request("x"), i2v.card)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(picture).permute(2, 0, 1)[None], (32, 48), mode="bilinear", antialias=True
    )[0]
    expected = i2v.condition((resized.float() / 255 - 0.5) / 0.5, 9)
    got = i2v.image_condition(picture, request)
    assert got is not None and torch.equal(got, expected)


def test_image_belongs_to_image_models(i2v, models):
    with pytest.raises(UsageError) as caught:
        i2v("x")
    assert caught.value.code == "image-missing"


def test_experts_take_their_turns(i2v):
    """t = 0.995, 0.934, 0.853, 0.609 with boundary 0.9: high, high, low, low."""
    used: list[str] = []
    for name, dit in i2v.experts.items():
        dit.register_forward_pre_hook(lambda *_, name=name: used.append(name))
    image = np.zeros((32, 48, 3), np.uint8)
    i2v("x", image=image, output_type="latent")
    assert used == ["high", "high", "low", "low"]
    used.clear()
    i2v("x", image=image, output_type="latent", num_inference_steps=2)
    assert used == ["high", "high"]
    used.clear()
    i2v("x", image=image, output_type="latent", baseline=True, num_inference_steps=2,
        guidance_scale=2.0, guidance_scale_2=1.0, boundary=0.9)  # fmt: skip
    assert used == ["high", "high", "low"]  # guidance 1 needs no second call


def test_missing_expert(i2v):
    with pytest.raises(SetupError, match=r"\('high', 'low'\)"):
        Pipeline(
            i2v.card, {"": i2v.experts["low"]}, i2v.vae, i2v.text_encoder, i2v.tokenizer,
            device=torch.device("cpu"),
        )  # fmt: skip


def golden_pipeline(golden: Golden, i2v: bool) -> Pipeline:
    """The golden networks in a pipeline; VAE and text encoder are not used."""
    names = {"": "dit_t2v_bf16"}
    if i2v:
        names = {e: f"dit_i2v_{e}_bf16" for e in ("high", "low")}
    folder = golden.path.parent
    experts = {e: build(load_golden(folder / f"{n}.safetensors")) for e, n in names.items()}
    config = next(iter(experts.values())).config
    _, _, t, h, w = golden["in.noise"].shape
    card = ModelCard(
        "golden", "i2v" if i2v else "t2v", config, tiny.T2V.vae, tiny.T2V.text, w * 4, h * 4,
        (t - 1) * 4 + 1, experts=tuple(names),
    )  # fmt: skip
    nothing = torch.nn.Identity()
    return Pipeline(card, experts, nothing, nothing, None, device=torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", golden_files("sample_*"), ids=golden_id)
def test_golden_runs(path: Path):
    """Noise, times, experts, re-noising and text keys as the released loop, from the seed alone."""
    golden = load_golden(path)
    meta = golden.metadata
    i2v = meta["kind"] == "i2v"
    pipe = golden_pipeline(golden, i2v)
    request = Request(
        "x", steps=int(meta["num_steps"]), seed=int(meta["seed"]), ode=meta["ode"] == "True",
        sigma_max=float(meta["sigma_max"]), boundary=float(meta["boundary"]) if i2v else None,
    )  # fmt: skip
    states: list[torch.Tensor] = []
    y = golden["in.y"] if i2v else None
    out = pipe.denoise(
        [resolve(request, pipe.card)], golden["in.context"], None, y,
        lambda done, total, t, estimate: states.append(estimate()),
    )  # fmt: skip
    assert len(states) == int(meta["num_steps"])
    assert relative_l2(out, golden["out"]) < 1e-2
