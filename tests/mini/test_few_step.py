"""Names and files of the few-step models: which is the default, and what a file runs as."""

import json
import shutil
import warnings

import pytest
import torch
from PIL import Image

from turbodiffusion.cli.main import main
from turbodiffusion.mini.export import PACKAGED
from turbodiffusion.models.cards import CARDS
from turbodiffusion.pipeline.load import load
from turbodiffusion.pipeline.planning import card_layouts
from turbodiffusion.weights import places
from turbodiffusion.weights.synthetic import write_synthetic

SMALL = ["--frames", "5", "--resolution", "32x32", "--device", "cpu", "--json", "--output", "o.png"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package folder with the shipped companions of mini and no DiT yet; an empty work folder."""
    folder = tmp_path / "package"
    folder.mkdir()
    for part in ("vae.safetensors", "text.safetensors", "tokenizer.json"):
        shutil.copy(PACKAGED / f"mini_{part}", folder)
    monkeypatch.setattr(places, "data_folder", lambda: folder)
    monkeypatch.setenv("TURBODIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TURBODIFFUSION_MODELS", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return folder


def add(folder, name, card, quantized=True, sla=True):
    """Random weights in one of the package's files, named in its metadata as training does."""
    metadata = {"card": card}
    write_synthetic(CARDS[card], folder / name, quantized=quantized, sla=sla, metadata=metadata)


def generated(capsys, *words):
    assert main(["generate", *words, *SMALL]) == 0
    shown = capsys.readouterr()
    return json.loads(shown.out)["settings"], shown.err


def test_generate_takes_the_student_as_soon_as_it_is_there(package, capsys):
    add(package, "mini_t2v_teacher.safetensors", "mini-teacher", quantized=False, sla=False)
    words = ["a red circle moving left", "--steps", "1"]
    made, _ = generated(capsys, *words)
    assert made["model"] == "mini-teacher" and made["guidance"] == 2
    add(package, "mini_t2v_student_int8.safetensors", "mini")
    made, err = generated(capsys, "a red circle moving left")
    assert made["model"] == "mini" and made["steps"] == 4 and "guidance" not in made
    assert made["quantised"] and made["attention"]["kind"] == "sla"
    assert "4 steps" in err and "int8 linears" in err and "warning" not in err.lower()
    made, _ = generated(capsys, *words, "--model", "mini-teacher")
    assert made["model"] == "mini-teacher"
    add(package, "mini_t2v_student.safetensors", "mini", quantized=False)
    made, _ = generated(capsys, *words, "--model", "mini")
    assert made["quantised"], "int8 stays the default"


def test_an_image_takes_the_image_model(package, tmp_path, capsys):
    image = tmp_path / "x.png"
    Image.new("RGB", (90, 60), "red").save(image)
    add(package, "mini_t2v_teacher.safetensors", "mini-teacher", quantized=False, sla=False)
    assert main(["generate", "it moves left", "--image", str(image), *SMALL]) == 2
    assert "image-unused" in capsys.readouterr().err
    for expert in ("high", "low"):
        add(package, f"mini_i2v_{expert}_int8.safetensors", "mini-i2v")
    made, err = generated(capsys, "it moves left", "--image", str(image))
    assert made["model"] == "mini-i2v" and made["read_as"] == "a shape moving left"
    assert set(made["weights"]) >= {"dit_high", "dit_low"} and made["steps"] == 4
    assert made["boundary"] == 0.9 and made["sigma_max"] == 200
    assert "TurboWan2.2-I2V-A14B-720P" in err, "the real model that it stands for"
    made, _ = generated(capsys, "a blue ring circling on a navy background", "--image", str(image))
    assert made["read_as"] == "a shape circling"
    made, _ = generated(capsys, "a red circle", "--steps", "1", "--model", "mini-teacher")
    assert made["model"] == "mini-teacher"


def test_the_middle_of_a_wide_image_is_animated(package):
    for expert in ("high", "low"):
        add(package, f"mini_i2v_{expert}_int8.safetensors", "mini-i2v")
    pipe = load("mini-i2v", device="cpu")
    square = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    wide = torch.full((3, 32, 50), 255, dtype=torch.uint8)
    wide[:, :, 9:41] = square
    first, second = (
        pipe("a shape growing", image=one, width=32, height=32, num_frames=5, seed=3).frames
        for one in (square, wide)
    )
    assert (first == second).all()


@pytest.mark.parametrize(("said", "expected"), [("mini", "mini"), ("", "mini-teacher")])
def test_a_dense_file_runs_as_what_it_says_it_is(package, tmp_path, said, expected):
    """The dense student of the run folder has no projection; its metadata tells what it is."""
    path = tmp_path / "network.safetensors"
    metadata = {"card": said} if said else {}
    write_synthetic(CARDS["mini"], path, sla=False, metadata=metadata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = load(path, device="cpu")
    assert pipe.card.name == expected and pipe.any_expert.attention.kind == "dense"
    calls = []
    pipe("a red circle", width=32, height=32, num_frames=5, num_inference_steps=3,
         on_step=lambda n, *_: calls.append(n))  # fmt: skip
    assert calls == [1, 2, 3]


def test_a_dense_file_with_a_students_name_is_warned_about(package, tmp_path):
    path = tmp_path / "mini_t2v_rcm.safetensors"  # the name alone is no proof
    write_synthetic(CARDS["mini"], path, sla=False)
    with pytest.warns(UserWarning, match="unless it was distilled"):
        assert load(path, device="cpu").card.name == "mini"


def test_the_plan_knows_which_layout_is_shipped(package):
    one = CARDS["mini"]
    assert [x.quantised for x in card_layouts(one, "auto", 2)] == [True], "the one that will be"
    add(package, "mini_t2v_student.safetensors", "mini", quantized=False)
    assert [x.quantised for x in card_layouts(one, "auto", 2)] == [False]
    add(package, "mini_t2v_student_int8.safetensors", "mini")
    assert [x.quantised for x in card_layouts(one, "auto", 2)] == [True]
    assert [x.quantised for x in card_layouts(one, "no", 2)] == [False]
    assert [x.quantised for x in card_layouts(CARDS["mini-teacher"], "yes", 2)] == [False]
    on_cpu, on_gpu = (card_layouts(one, "auto", element)[0].sizes.dit for element in (4, 2))
    assert on_cpu > 3 * on_gpu, "int8 weights are expanded to float32 on a CPU"
