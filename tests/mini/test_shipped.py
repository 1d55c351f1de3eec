"""The embedded model as it ships: prompt to file to judge, and the least it must reach."""

from __future__ import annotations

import json

import pytest

from turbodiffusion.cli.main import main
from turbodiffusion.media import read_settings, read_video
from turbodiffusion.mini import evaluate
from turbodiffusion.mini.export import PACKAGED, read_report
from turbodiffusion.mini.judge import judge
from turbodiffusion.mini.recipe import recipe
from turbodiffusion.mini.table import ATTRIBUTES, Row
from turbodiffusion.pipeline import load

SIZE = recipe("micro")
STEPS = 20  # of the 50: enough for these bounds, and the suite stays short


@pytest.fixture(scope="module")
def pipe():
    return load(device="cpu")


def accuracy(row: Row) -> dict[str, float]:
    return {k: v["accuracy"] for k, v in row.as_json().items() if k in ATTRIBUTES}


def test_a_prompt_becomes_the_video_it_describes(tmp_path, capsys):
    target = tmp_path / "a clip é.mp4"
    prompt = "a red circle moving right on a black background"
    assert main(["generate", prompt, "--output", str(target), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    video = read_video(target)
    assert video.frames.shape == (SIZE.card.frames, SIZE.card.height, SIZE.card.width, 3)
    assert read_settings(target)["prompt"] == prompt
    reading = judge(video.frames)
    assert reading.background == "black"
    seen = [(thing.colour, thing.shape, thing.motion) for thing in reading.objects]
    assert seen == [("red", "circle", "moving right")]


def test_held_out_prompts_are_followed(pipe):
    """The published gates are measured with 50 steps and more prompts; these bounds are loose."""
    row = evaluate.measure(pipe, "teacher", "held_out", 1, 24, 12, steps=STEPS)
    found = accuracy(row)
    assert row.videos == 24 and row.calls == 2 * STEPS
    assert found["background"] >= 0.95
    assert found["colour"] >= 0.9
    assert found["motion"] >= 0.8
    assert found["shape"] >= 0.6, "chance is 0.17"


def test_reconstructions_keep_every_attribute(pipe):
    row = evaluate.measure(pipe, "vae", "held_out", 1, 32, 16)
    assert row.as_json()["psnr_db"] >= 30
    assert min(accuracy(row).values()) >= 0.9


def test_report_beside_the_weights_is_whole():
    report = read_report(SIZE, PACKAGED)
    for part in ("vae", "teacher"):
        stage = report[part]
        assert stage["complete"] and stage["recipe"]["seed"] and stage["seconds"] > 0
        assert stage["device"] and stage["torch"]
    rows = {(r["row"], r["split"], r["objects"]): r for r in report["quality"]["rows"]}
    teacher = rows["teacher", "held_out", 1]
    assert teacher["videos"] >= 256 and teacher["network_calls"] == 100
    gates = {"background": 0.97, "colour": 0.95, "motion": 0.85, "shape": 0.6}
    for name, least in gates.items():
        assert teacher[name]["accuracy"] >= least, name
        assert teacher[name]["samples"] == teacher["videos"]
    json.dumps(report)
