"""The image-to-video model as it ships: a picture in, its motion out, and what was recorded."""

import dataclasses

import pytest
import torch
from PIL import Image

from turbodiffusion.cli.main import main
from turbodiffusion.media import read_settings, read_video
from turbodiffusion.mini import i2v_judge, world
from turbodiffusion.mini.data import render_clips
from turbodiffusion.mini.export import PACKAGED, file, read_report
from turbodiffusion.mini.images import i2v_card
from turbodiffusion.mini.judge import judge, score
from turbodiffusion.mini.recipe import recipe
from turbodiffusion.models.cards import CARDS
from turbodiffusion.weights.find import default_name, find
from turbodiffusion.weights.quantize import QUANTIZED
from turbodiffusion.weights.stream import open_network

MINI = recipe("mini")


def test_a_picture_moves_as_it_is_told(tmp_path, capsys):
    """No model is named, the picture is wider than the video, and the text says the motion only."""
    scenes = world.sample_scenes(1, 5, split="held_out", two_objects=0.0)
    first = render_clips(scenes, 1, 128, torch.device("cpu"))[0, :, 0]
    pixels = ((first + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    wide = Image.new("RGB", (200, 128), "white")
    wide.paste(Image.fromarray(pixels), (36, 0))
    wide.save(tmp_path / "first é.png")
    wanted = world.expected(scenes, 0)
    target = tmp_path / "moves.mp4"
    words = ["generate", f"it is {wanted.objects[0].motion}", "--image", tmp_path / "first é.png"]
    assert main([*map(str, words), "--output", str(target), "--device", "cpu"]) == 0
    capsys.readouterr()
    settings, video = read_settings(target), read_video(target)
    assert settings["model"] == "mini-i2v" and settings["quantised"] and settings["steps"] == 4
    assert settings["read_as"] == f"a shape {wanted.objects[0].motion}"
    assert video.frames.shape == (33, 128, 128, 3)
    assert score(judge(video.frames), wanted)["joint"], (judge(video.frames), wanted)
    frame = torch.from_numpy(video.frames[0].copy()).float() / 255
    assert i2v_judge.psnr(frame, (first.permute(1, 2, 0) + 1) / 2) >= i2v_judge.AIM_PSNR


def test_recorded_rows_meet_the_aims():
    report = read_report(MINI, PACKAGED)
    for part in ("base", "teacher_high", "teacher_low"):
        assert report["i2v"][part]["complete"] and report["i2v"][part]["broken"] == 0
    rows = {row["name"]: row for row in report["i2v_quality"]["rows"]}
    shipped, control = rows["int8"], rows["exchanged"]
    assert shipped["samples"] >= 32 and shipped["steps"] == 4
    assert shipped["psnr"] >= i2v_judge.AIM_PSNR
    for name in ("colour", "shape", "background", "motion"):
        assert shipped[name] >= 0.8, name
    for name, share in report["i2v_quality"]["chance"].items():
        assert control[name] <= share + 0.1, "what an image decides follows the image"


@pytest.mark.parametrize("expert", ["high", "low"])
def test_experts_are_dense_and_int8(expert):
    network = open_network(file(MINI, PACKAGED, f"i2v_{expert}_int8"))
    assert network.metadata["card"] == "mini-i2v" and network.metadata["expert"] == expert
    assert not any("proj_l" in name for name in network.spec)
    assert network.spec["patch_embedding.weight"].shape == (256, 80)
    assert sum(name.endswith(".int8_weight") for name in network.spec) == 40


@pytest.mark.parametrize("size", ["mini", "micro"])
def test_student_and_teacher_differ_in_what_is_said(size):
    """Same network, same companions; the student has few steps and its own weights."""
    student, teacher = CARDS[size], CARDS[f"{size}-teacher"]
    differing = {
        one.name
        for one in dataclasses.fields(student)
        if getattr(student, one.name) != getattr(teacher, one.name)
    }
    assert differing == {"name", "few_step", "attention"}
    few, slow = find(size), find(f"{size}-teacher")
    assert (few.vae, few.text_encoder, few.tokenizer) == (
        slow.vae,
        slow.text_encoder,
        slow.tokenizer,
    )
    plain = open_network(find(size, quantized=False).dit[""])
    before = open_network(slow.dit[""])
    sparse = {name for name in plain.spec if "proj_l" in name}
    assert bool(sparse) == (recipe(size).student == "turbo")
    assert {n: s.shape for n, s in plain.spec.items() if n not in sparse} == {
        n: s.shape for n, s in before.spec.items()
    }
    eight = open_network(few.dit[""])
    kept = set(plain.spec) & set(eight.spec)
    assert set(plain.spec) - kept == {name for name in plain.spec if QUANTIZED.fullmatch(name)}


def test_image_card_differs_in_what_is_said():
    image, text = i2v_card(MINI), MINI.card
    assert default_name("i2v") == "mini-i2v"
    assert dataclasses.replace(image.dit, in_dim=8) == text.dit and image.dit.condition_dim == 12
    assert (image.vae, image.text, image.frames) == (text.vae, text.text, text.frames)
