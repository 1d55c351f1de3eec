"""The embedded model as it ships: prompt to file to judge, and the least it must reach."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from turbodiffusion.cli.main import main
from turbodiffusion.media import read_settings, read_video
from turbodiffusion.mini import evaluate
from turbodiffusion.mini.export import PACKAGED, read_report
from turbodiffusion.mini.judge import judge
from turbodiffusion.mini.quality import Options, measure_quality
from turbodiffusion.mini.recipe import recipe
from turbodiffusion.mini.tally import ATTRIBUTES
from turbodiffusion.models.cards import CARDS
from turbodiffusion.pipeline import load
from turbodiffusion.weights.quantize import Quantized
from turbodiffusion.weights.stream import Converted, open_network, whole

STEPS = 20  # of the 50: enough for these bounds, and the suite stays short


@pytest.fixture(scope="module")
def pipe():
    return load("micro-teacher", device="cpu")


def accuracy(values: dict) -> dict[str, float]:
    return {k: v["accuracy"] for k, v in values.items() if k in ATTRIBUTES}


@pytest.mark.parametrize(
    ("flags", "model", "calls"),
    [
        ([], "mini", 4),
        (["--model", "micro"], "micro", 4),
        (["--model", "micro-teacher", "--steps", str(STEPS)], "micro-teacher", STEPS),
    ],
)
def test_a_prompt_becomes_the_video_it_describes(flags, model, calls, tmp_path, capsys):
    """The student of the larger size is the default, so no model is named for it."""
    card = CARDS[model]
    target = tmp_path / "a clip é.mp4"
    prompt = "a red circle moving right on a black background"
    words = ["generate", prompt, "--output", str(target), "--device", "cpu", *flags]
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == str(target)
    video = read_video(target)
    assert video.frames.shape == (card.frames, card.height, card.width, 3)
    settings = read_settings(target)
    assert settings["prompt"] == prompt and settings["model"] == model
    assert settings["steps"] == calls and settings["quantised"] is card.few_step
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


@pytest.mark.parametrize("size", ["mini", "micro"])
def test_the_student_in_the_table_is_the_one_that_ships(size):
    path = PACKAGED / f"{size}_t2v_student_int8.safetensors"
    recorded = read_report(recipe(size), PACKAGED)["quality"]["weights"]["t2v_student_int8"]
    assert recorded["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("size", ["mini", "micro"])
def test_int8_weights_are_those_of_the_student(size):
    plain, int8 = (
        open_network(PACKAGED / f"{size}_t2v_student{form}.safetensors") for form in ("", "_int8")
    )
    made = Quantized(Converted(plain))
    assert set(int8.spec) == set(made.spec)
    for name in ("blocks.1.ffn.0.int8_weight", "blocks.2.self_attn.q.scale", "head.head.weight"):
        assert torch.equal(whole(int8, name), whole(made, name))


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
    student = report["student"]
    assert student["network"] == recipe(name).student and student["steps"] and student["device"]
    for split in ("seen", "held_out"):
        few, teacher = rows["rcm-4", split, 1], rows["teacher", split, 1]
        assert few["network_calls"] == 4 and few["videos"] >= 128
        assert few["joint"]["accuracy"] >= teacher["joint"]["accuracy"] - 0.05
    if name == "mini":
        assert rows["teacher", "seen", 1]["joint"]["accuracy"] >= 0.90
        assert rows["VAE reconstruction", "held_out", 1]["psnr_db"] >= 34
    json.dumps(report)
