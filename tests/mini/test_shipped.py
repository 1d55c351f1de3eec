"""The embedded model as it ships: prompt to file to judge, and the least it must reach."""

from __future__ import annotations

import json

import pytest

from turbodiffusion.cli.main import main
from turbodiffusion.media import read_settings, read_video
from turbodiffusion.mini import evaluate
from turbodiffusion.mini.export import PACKAGED, read_report
from turbodiffusion.mini.judge import judge
from turbodiffusion.mini.quality import Options, measure_quality
from turbodiffusion.mini.recipe import recipe
from turbodiffusion.mini.tally import ATTRIBUTES
from turbodiffusion.pipeline import load

STEPS = 20  # of the 50: enough for these bounds, and the suite stays short


@pytest.fixture(scope="module")
def pipe():
    return load("micro-teacher", device="cpu")


def accuracy(values: dict) -> dict[str, float]:
    return {k: v["accuracy"] for k, v in values.items() if k in ATTRIBUTES}


@pytest.mark.parametrize("name", ["mini", "micro"])
def test_a_prompt_becomes_the_video_it_describes(name, tmp_path, capsys):
    """The larger one is the default, so no model is named for it."""
    card = recipe(name).card
    target = tmp_path / "a clip é.mp4"
    prompt = "a red circle moving right on a black background"
    words = ["generate", prompt, "--output", str(target), "--device", "cpu", "--steps", str(STEPS)]
    assert main(words + (["--model", name] if name == "micro" else [])) == 0
    assert capsys.readouterr().out.strip() == str(target)
    video = read_video(target)
    assert video.frames.shape == (card.frames, card.height, card.width, 3)
    settings = read_settings(target)
    assert settings["prompt"] == prompt and settings["model"] == card.name
    reading = judge(video.frames)
    assert reading.background == "black"
    seen = [(thing.colour, thing.shape, thing.motion) for thing in reading.objects]
    assert seen == [("red", "circle", "moving right")]


def test_held_out_prompts_are_followed(pipe):
    """The published gates are measured with 50 steps and more prompts; these bounds are loose."""
    row = evaluate.measure(pipe, "held_out", 1, 24, 12, steps=STEPS)
    found = accuracy(row.as_json())
    assert row.videos == 24 and row.calls == 2 * STEPS
    assert found["background"] >= 0.95
    assert found["colour"] >= 0.9
    assert found["motion"] >= 0.8
    assert found["shape"] >= 0.6, "chance is 0.17"


def test_reconstructions_keep_every_attribute():
    options = Options(device="cpu", rows=["vae"], samples=16, real=0, workers=1)
    result, _ = measure_quality(recipe("micro"), options, lambda text: None)
    assert [row["split"] for row in result["rows"]] == ["seen", "held_out"]
    for row in result["rows"]:
        assert row["psnr_db"] >= 30
        assert min(accuracy(row).values()) >= 0.85


GATES = {
    "micro": {1: {"background": 0.97, "colour": 0.95, "motion": 0.85, "shape": 0.6}},
    "mini": {
        1: {"background": 0.97, "colour": 0.95, "motion": 0.85, "joint": 0.80},
        2: {"joint": 0.70},
    },
}
"""Least accuracies of the teacher on held-out combinations, by number of objects."""


@pytest.mark.parametrize("name", GATES)
def test_report_beside_the_weights_is_whole_and_meets_the_gates(name):
    report = read_report(recipe(name), PACKAGED)
    for part in ("vae", "teacher"):
        stage = report[part]
        assert stage["complete"] and stage["recipe"]["seed"] and stage["seconds"] > 0
        assert stage["device"] and stage["torch"]
    rows = {(r["row"], r["split"], r["objects"]): r for r in report["quality"]["rows"]}
    for objects, gates in GATES[name].items():
        teacher = rows["teacher", "held_out", objects]
        assert teacher["videos"] >= 256 and teacher["network_calls"] == 100
        for attribute, least in gates.items():
            assert teacher[attribute]["accuracy"] >= least, attribute
            assert teacher[attribute]["samples"] == teacher["videos"]
    if name == "mini":
        assert rows["teacher", "seen", 1]["joint"]["accuracy"] >= 0.90
        assert rows["VAE reconstruction", "held_out", 1]["psnr_db"] >= 34
    json.dumps(report)
