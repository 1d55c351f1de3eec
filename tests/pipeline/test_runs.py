"""Whole runs on tiny networks of the released layouts: prompt to file, every kind of checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pipeline import tiny
from turbodiffusion.cli.main import main
from turbodiffusion.media import read_settings, read_video

PROMPT = "a red circle moving right on a black background"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    values = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(values).save(path)
    return path


def generate(*words: object) -> int:
    return main(["generate", PROMPT, "--output", "out.mp4", *map(str, words)])


T2V_RUNS = {
    "bf16": ("bf16", [], "sagesla", False),
    "safetensors": ("safetensors", [], "sagesla", False),
    "int8-sla": ("int8", ["--attention", "sla", "--topk", "0.5"], "sla", True),
    "dense": ("bf16", ["--attention", "dense"], "dense", False),
    "plain": ("plain", ["--steps", "2"], "dense", False),
    "unipc-cfg": ("bf16", ["--baseline"], "sagesla", False),
    "euler": ("bf16", ["--baseline", "--solver", "euler", "--guidance", "1"], "sagesla", False),
}


@pytest.mark.parametrize("run", T2V_RUNS.values(), ids=T2V_RUNS)
def test_text_to_video(models, run, capsys):
    file, flags, attention, quantised = run
    assert generate("--model", models[file], *flags) == 0
    video = read_video("out.mp4")
    assert video.frames.shape == (9, 32, 48, 3)
    assert video.frames.std() > 1  # not one grey
    settings = video.settings
    assert settings["prompt"] == PROMPT and settings["model"] == tiny.T2V.name
    assert settings["attention"]["kind"] == attention and settings["quantised"] is quantised
    assert settings["precision"] == "bfloat16"
    assert settings["baseline"] is ("--baseline" in flags)
    assert len(settings["weights"]["dit"]["sha256"]) == 64
    shown = capsys.readouterr()
    assert f"{attention} attention" in shown.err
    assert shown.out.strip() == str(Path("out.mp4").absolute())
    assert shown.err.count("accuracy of 8-bit attention") == (attention == "sagesla")
    assert ("no projection for sparse attention" in shown.err) is (file == "plain")


@pytest.mark.parametrize("ode", [False, True], ids=["sde", "ode"])
def test_image_to_video(models, picture, ode):
    flags = ["--ode"] if ode else []
    assert generate("--model", models["high"], "--low", models["low"], "--image", picture,
                    "--aspect", "image", *flags) == 0  # fmt: skip
    video = read_video("out.mp4")
    assert video.frames.shape == (9, 32, 48, 3)  # 3:2, as the picture
    assert video.settings["ode"] is ode and video.settings["boundary"] == 0.9
    assert set(video.settings["weights"]) >= {"dit_high", "dit_low", "vae", "text_encoder"}


def test_ways_differ_and_repeat(models, picture):
    """Same settings, same bytes; another seed, sampler or expert file, other frames."""
    i2v = ["--model", tiny.I2V.name, "--image", picture]
    seen = {}
    for name, flags in {
        "sde": [], "again": [], "ode": ["--ode"], "seed": ["--seed", 1], "steps": ["--steps", 2],
        "boundary": ["--boundary", "0"], "sigma": ["--sigma-max", 80],
    }.items():  # fmt: skip
        assert generate(*i2v, *flags) == 0
        seen[name] = Path("out.mp4").read_bytes()
    assert seen.pop("again") == seen["sde"]
    assert len(set(seen.values())) == len(seen)


@pytest.mark.parametrize(
    "flags",
    [["--model", tiny.T2V.name, "--steps", "2", "--seed", "5", "--attention", "sla"],
     ["--model", tiny.T2V.name + "-quant", "--resolution", "32x32", "--frames", "5"],
     ["--model", tiny.T2V.name, "--baseline", "--negative", "noise", "--shift", "3"]],
    ids=["sla", "int8", "baseline"],
)  # fmt: skip
def test_like_repeats_the_bytes(models, flags):
    assert generate(*flags) == 0
    assert main(["generate", "--like", "out.mp4", "--output", "copy.mp4"]) == 0
    assert read_settings("copy.mp4") == read_settings("out.mp4")
    assert (read_video("copy.mp4").frames == read_video("out.mp4").frames).all()
    assert Path("copy.mp4").read_bytes() == Path("out.mp4").read_bytes()
    assert main(["generate", "--like", "out.mp4", "--seed", "9", "--output", "other.mp4"]) == 0
    assert read_settings("other.mp4")["seed"] == 9
    assert (read_video("other.mp4").frames != read_video("out.mp4").frames).any()


def test_like_with_other_weights_warns(models, tmp_path, capsys):
    from turbodiffusion.weights.synthetic import write_synthetic

    assert generate("--model", models["safetensors"]) == 0
    other = write_synthetic(tiny.T2V, tmp_path / "other.safetensors", seed=7)
    capsys.readouterr()
    command = ["generate", "--like", "out.mp4", "--model", str(other), "--output", "b.mp4"]
    assert main(command) == 0
    assert "dit differ" in capsys.readouterr().err


def test_json_line(models, capsys):
    assert generate("--model", tiny.T2V.name, "--json") == 0
    line = json.loads(capsys.readouterr().out)
    assert line["path"] == str(Path("out.mp4").absolute())
    assert line["settings"] == read_settings("out.mp4")
    assert set(line["seconds"]) == {"text", "denoise", "identify", "decode"}


def test_low_expert_alone_is_an_error(models, tmp_path, capsys):
    import shutil

    alone = tmp_path / "alone" / models["high"].name
    alone.parent.mkdir()
    shutil.copy(models["high"], alone)
    assert generate("--model", alone) == 1
    assert "weights-expert-missing" in capsys.readouterr().err


def test_weights_stay_as_they_are(models):
    """A run on the CPU works on the memory-mapped file and must not write to it."""
    before = models["bf16"].read_bytes()
    assert generate("--model", models["bf16"]) == 0
    assert models["bf16"].read_bytes() == before
    assert torch.is_grad_enabled()
