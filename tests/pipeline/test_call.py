"""The Python call: diffusers' argument names, output types, callbacks, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import turbodiffusion
import turbodiffusion.models.cards
from tests.pipeline import tiny
from turbodiffusion.errors import SetupError, Stopped, UsageError
from turbodiffusion.sampling.noise import draw_noise

PROMPT = "a red circle moving right"


@pytest.fixture(scope="module")
def pipe(model_folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(turbodiffusion.models.cards.CARDS, tiny.T2V.name, tiny.T2V)
        patch.setenv("TURBODIFFUSION_MODELS", str(model_folder))
        patch.setenv("TURBODIFFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        with pytest.warns(UserWarning, match="accuracy of 8-bit attention"):
            return turbodiffusion.load(model_folder / tiny.FILES["bf16"], device="cpu")


def frames(video) -> np.ndarray:
    return video.frames


def test_one_prompt_is_a_video(pipe, tmp_path):
    video = pipe(PROMPT, seed=3)
    assert isinstance(video, turbodiffusion.Video)
    assert video.frames.shape == (9, 32, 48, 3) and video.fps == 16
    assert video.settings["seed"] == 3 and video.settings["version"] == turbodiffusion.__version__
    assert video.save(tmp_path / "x.mp4").exists()


def test_a_video_does_not_depend_on_its_batch(pipe):
    many = pipe([PROMPT, "a blue square"], num_videos_per_prompt=2, seed=5)
    assert [v.settings["seed"] for v in many] == [5, 6, 7, 8]
    assert [v.settings["prompt"] for v in many] == [PROMPT] * 2 + ["a blue square"] * 2
    assert (frames(many[3]) == frames(pipe("a blue square", seed=8))).all()
    assert (frames(many[0]) != frames(many[1])).any()


def test_output_types(pipe):
    video = pipe(PROMPT)
    array = pipe(PROMPT, output_type="np").frames
    assert array.shape == (1, 9, 32, 48, 3) and array.dtype == np.float32
    assert array.min() >= 0 and array.max() <= 1
    assert (np.floor(array[0] * 255 + 0.5).astype(np.uint8) == video.frames).mean() > 0.999
    tensor = pipe(PROMPT, output_type="pt").frames
    assert tensor.shape == (1, 9, 3, 32, 48)
    assert torch.equal(tensor.permute(0, 1, 3, 4, 2), torch.from_numpy(array))
    [[first, *_]] = pipe(PROMPT, output_type="pil").frames
    assert (np.asarray(first) == video.frames[0]).all()
    latent = pipe(PROMPT, output_type="latent").frames
    assert latent.shape == (1, 8, 3, 8, 12) and latent.dtype == torch.float32
    latent.add_(1)  # an ordinary tensor, not one of inference mode
    answer = pipe(PROMPT, output_type="pt", return_dict=False)
    assert isinstance(answer, tuple) and torch.equal(answer[0], tensor)


def test_generator_latents_and_embeddings(pipe):
    expected = frames(pipe(PROMPT, seed=4))
    generator = torch.Generator().manual_seed(4)
    video = pipe(PROMPT, generator=generator)
    assert (frames(video) == expected).all()
    assert video.settings["generator"] == "given by the caller"
    assert (frames(pipe(PROMPT, generator=generator)) != expected).any()  # it advanced
    both = pipe([PROMPT] * 2, generator=[torch.Generator().manual_seed(s) for s in (9, 4)])
    assert (frames(both[1]) == expected).all()
    noise = draw_noise((1, 8, 3, 8, 12), 4)
    assert (frames(pipe(PROMPT, latents=noise, seed=4)) == expected).all()
    assert (frames(pipe(PROMPT, latents=noise, seed=5)) != expected).any()  # SDE noise differs
    embeds = pipe.encode_prompts([PROMPT])
    given = pipe(prompt_embeds=embeds, seed=4)
    assert (frames(given) == expected).all() and "embeddings" in given.settings["prompt"]
    two = pipe(prompt_embeds=embeds, seed=3, num_videos_per_prompt=2)
    assert (frames(two[1]) == expected).all()


def test_negative_prompts_belong_to_their_prompt(pipe):
    options = {"baseline": True, "num_inference_steps": 2, "guidance_scale": 3.0}
    many = pipe([PROMPT, "a blue square"], ["blue", "red"], num_videos_per_prompt=2, **options)
    assert [v.settings["negative"] for v in many] == ["blue", "blue", "red", "red"]
    assert (frames(many[1]) == frames(pipe(PROMPT, "blue", seed=1, **options))).all()
    assert (frames(many[1]) != frames(pipe(PROMPT, "red", seed=1, **options))).any()
    embeds = pipe.encode_prompts(["blue"])
    one = pipe(PROMPT, negative_prompt_embeds=embeds, seed=1, **options)
    assert (frames(one) == frames(many[1])).all()


def test_rounding_warns(pipe):
    with pytest.warns(UserWarning, match="making 9"):
        assert len(pipe(PROMPT, num_frames=8)) == 9
    with pytest.warns(UserWarning, match="making 32"):
        assert pipe(PROMPT, width=39, height=32, num_frames=1).width == 32
    with pytest.warns(UserWarning, match="guidance: without effect"):
        pipe(PROMPT, guidance_scale=5.0, num_frames=1)
    with pytest.warns(UserWarning, match="reads 24 tokens"):
        pipe(PROMPT, max_sequence_length=512, num_frames=1)


def test_our_callback(pipe):
    seen = []

    def on_step(done, total, t, estimate):
        seen.append((done, total, round(t, 3), tuple(estimate().shape)))
        list(pipe.decode(estimate()))  # a preview
        return done < 2

    with pytest.raises(Stopped):
        pipe(PROMPT, on_step=on_step)
    assert seen == [(1, 4, 0.988, (1, 8, 3, 8, 12)), (2, 4, 0.934, (1, 8, 3, 8, 12))]
    assert frames(pipe(PROMPT)).shape == (9, 32, 48, 3)  # still usable


def test_callback_of_diffusers(pipe):
    seen = []

    def look(p, step, timestep, kwargs):
        seen.append((step, round(timestep), kwargs["latents"].dtype))
        p._interrupt = step == 1
        return kwargs

    with pytest.raises(Stopped):
        pipe(PROMPT, callback_on_step_end=look)
    assert seen == [(0, 988, torch.float32), (1, 934, torch.float32)]
    pipe(PROMPT, callback_on_step_end=lambda *_: None)
    with pytest.raises(UsageError, match="other latents"):
        pipe(PROMPT, callback_on_step_end=lambda p, s, t, k: {"latents": k["latents"] * 2})


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({}, "prompt-empty"),
        ({"prompt": []}, "prompt-empty"),
        ({"prompt": [PROMPT, " "]}, "prompt-empty"),
        ({"prompt": PROMPT, "prompt_embeds": torch.zeros(1, 24, 64)}, "prompt-twice"),
        ({"prompt_embeds": torch.zeros(1, 7, 64)}, "call-embeds"),
        ({"prompt": PROMPT, "num_videos_per_prompt": 0}, "num-illegal"),
        ({"prompt": PROMPT, "output_type": "mp4"}, "call-output-type"),
        ({"prompt": PROMPT, "attention_kwargs": {"scale": 1}}, "call-attention-kwargs"),
        ({"prompt": PROMPT, "colour": 1}, "call-setting"),
        ({"prompt": PROMPT, "frames": 5, "num_frames": 9}, "call-twice"),
        ({"prompt": PROMPT, "latents": torch.zeros(2, 8, 3, 8, 12)}, "call-latents"),
        ({"prompt": PROMPT, "latents": torch.zeros(1, 8, 3, 8, 8)}, "call-latents"),
        ({"prompt": PROMPT, "generator": [torch.Generator()] * 2}, "sampling-generators"),
        ({"prompt": [PROMPT] * 2, "negative_prompt": ["a"] * 3}, "call-count"),
        ({"prompt": PROMPT, "guidance_scale_2": 2.0}, "guidance-single-expert"),
        ({"prompt": PROMPT, "num_inference_steps": 50}, "steps-illegal"),
        ({"prompt": PROMPT, "image": "x.png"}, "image-unused"),
        ({"prompt": PROMPT, "callback_on_step_end_tensor_inputs": ["noise"]}, "call-tensor-inputs"),
    ],
    ids=lambda v: v if isinstance(v, str) else "-",
)
def test_refused(pipe, arguments, code):
    with pytest.raises(UsageError) as caught:
        pipe(**arguments)
    assert caught.value.code == code


def test_loading_refuses(models, monkeypatch):
    for options, code in (
        ({"device": "gpu"}, "device-unknown"),
        ({"device": "meta"}, "device-unsupported"),
        ({"attention": "flash"}, "attention-unknown"),
        ({"topk": 0.0}, "attention-topk"),
    ):
        with pytest.raises(UsageError) as caught:
            turbodiffusion.load(models["bf16"], **options)
        assert caught.value.code == code
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SetupError, match="no CUDA"):
        turbodiffusion.load(models["bf16"], device="cuda")


def test_topk_alone_follows_the_file(models):
    with pytest.warns(UserWarning, match="accuracy of 8-bit attention"):
        sparse = turbodiffusion.load(models["bf16"], topk=0.5)
    assert sparse.any_expert.attention.kind == "sagesla"
    assert sparse.any_expert.attention.topk == 0.5
    with pytest.warns(UserWarning) as said:
        dense = turbodiffusion.load(models["plain"], topk=0.5)
    assert [str(w.message).split(" ", 3)[:3] for w in said] == [
        ["topk", "0.5", "is"],
        ["The", "file", "has"],
    ]
    assert dense.any_expert.attention.kind == "dense"
