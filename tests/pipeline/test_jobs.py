"""From command lines, prompt files and stored settings to jobs, sizes and names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.tiny import I2V, T2V
from turbodiffusion.errors import MediaError, UsageError
from turbodiffusion.models.cards import CARDS
from turbodiffusion.pipeline.batch import _like_model
from turbodiffusion.pipeline.jobs import Job, plan_jobs, request_of
from turbodiffusion.pipeline.outputs import plan_outputs
from turbodiffusion.pipeline.request import Request

RELEASED = CARDS["TurboWan2.1-T2V-1.3B-480P"]
A14B = CARDS["TurboWan2.2-I2V-A14B-720P"]
MICRO = CARDS["micro-teacher"]


def prompts(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(text, "utf-8")
    return path


def test_text_and_json_lines(tmp_path):
    text = '\ufeff# comment\na red circle\n\n{"prompt": "ein Kreis ü", "seed": 7, "num": 2}\n'
    jobs = plan_jobs({"prompts": prompts(tmp_path, text), "steps": 2, "seed": 1})
    assert [j.settings["prompt"] for j in jobs] == ["a red circle", "ein Kreis ü", "ein Kreis ü"]
    assert [j.settings["seed"] for j in jobs] == [1, 7, 8]
    assert all(j.settings["steps"] == 2 and "num" not in j.settings for j in jobs)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "prompts-empty"),
        ("# only\n\n", "prompts-empty"),
        ('{"prompt": "x"', "prompts-json"),
        ('{"prompt": "x", "colour": 1}', "prompts-key"),
        ('{"prompt": "x", "output": 3}', "prompts-type"),
        ('{"seed": 3}', "prompt-empty"),
        ('{"prompt": "x", "num": 0}', "num-illegal"),
        ('{"prompt": "x", "num": true}', "num-illegal"),
    ],
)
def test_prompt_files_that_cannot_be_used(tmp_path, text, code):
    with pytest.raises(UsageError) as caught:
        plan_jobs({"prompts": prompts(tmp_path, text)})
    assert caught.value.code == code


def test_prompt_sources(tmp_path):
    for flags, code in (
        ({}, "prompt-empty"),
        ({"prompt": " "}, "prompt-empty"),
        ({"prompts": tmp_path / "none"}, "prompts-unreadable"),
        ({"prompt": "x", "prompts": prompts(tmp_path, "y")}, "prompt-twice"),
    ):
        with pytest.raises(UsageError) as caught:
            plan_jobs(flags)
        assert caught.value.code == code
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UsageError, match="cannot be read"):
        plan_jobs({"prompts": tmp_path / "latin.txt"})


def test_outputs_of_several(tmp_path):
    def outputs(**flags):
        return [j.output for j in plan_jobs({"prompt": "x", **flags})]

    assert outputs(output="a.mp4") == ["a.mp4"]
    assert outputs(output="a.mp4", num=2) == ["a-000.mp4", "a-001.mp4"]
    assert outputs(output="a/", num=2) == ["a/000.mp4", "a/001.mp4"]
    assert outputs(num=2) == [None, None]
    file = prompts(tmp_path, 'x\n{"prompt": "y", "output": "own.gif"}\nz\n')
    jobs = plan_jobs({"prompts": file, "output": "a.mp4"})
    assert [j.output for j in jobs] == ["a-000.mp4", "own.gif", "a-002.mp4"]


def test_like_is_overridden_by_flags_and_lines(tmp_path):
    like = {"prompt": "old", "seed": 3, "steps": 2, "width": 64, "height": 32, "samples": 2,
            "weights": {}, "version": "0"}  # fmt: skip
    [job] = plan_jobs({"seed": 9}, like)
    assert job.settings == {"prompt": "old", "seed": 9, "steps": 2, "width": 64, "height": 32}
    assert job.samples == 2
    [job] = plan_jobs({"resolution": "40x40"}, like)
    assert "width" not in job.settings
    [job] = plan_jobs({"prompts": prompts(tmp_path, '{"prompt": "x", "aspect": "1:1"}')}, like)
    assert "height" not in job.settings and job.settings["prompt"] == "x"


def test_like_names_the_model():
    stored = {"model": RELEASED.name, "quantised": True, "attention": {"kind": "dense"}}
    flags = _like_model({"prompt": "x"}, stored)
    assert flags["model"] == RELEASED.name + "-quant" and flags["attention"].kind == "dense"
    assert _like_model({"model": "micro"}, stored) == {"model": "micro"}
    assert _like_model({"topk": 0.3}, stored)["attention"].topk == 0.3
    assert "attention" not in _like_model({}, {**stored, "attention": {"kernel": "new"}})
    assert (
        _like_model({}, {"model": "micro-teacher", "quantised": True})["model"] == "micro-teacher"
    )


def size(card=RELEASED, **settings):
    request = request_of(Job({"prompt": "x", **settings}), card)
    return request.width, request.height


def test_sizes(tmp_path):
    from PIL import Image

    assert size() == (None, None)
    assert size(resolution="720p") == (1280, 720)
    assert size(aspect="9:16") == (480, 832)
    assert size(A14B, aspect="1:1") == (960, 960)
    assert size(resolution="640x384") == (640, 384)
    assert size(MICRO, resolution="64×48") == (64, 48)
    assert size(T2V, aspect="1:1") == (40, 40)
    assert size(MICRO, aspect="16:9")[0] > size(MICRO, aspect="16:9")[1]
    Image.fromarray(np.zeros((1080, 1920, 3), np.uint8)).save(tmp_path / "wide.png")
    image = str(tmp_path / "wide.png")
    assert size(A14B, image=image, aspect="image") == (1280, 720)
    assert size(A14B, image=image, aspect="image", resolution="480p") == (848, 480)
    assert size(I2V, image=image, aspect="image") == (56, 32)


@pytest.mark.parametrize(
    ("card", "settings", "code"),
    [
        (RELEASED, {"resolution": "999p"}, "media-resolution"),
        (RELEASED, {"aspect": "2:1"}, "media-aspect"),
        (MICRO, {"aspect": "wide"}, "media-aspect"),
        (MICRO, {"aspect": "image"}, "aspect-image"),
        (MICRO, {"resolution": "480p"}, "resolution-embedded"),
        (RELEASED, {"resolution": "640x480", "aspect": "1:1"}, "aspect-twice"),
        (A14B, {"aspect": "image"}, "aspect-image"),
        (RELEASED, {"resolution": "12x"}, "media-size"),
    ],
)
def test_sizes_that_do_not_exist(card, settings, code):
    with pytest.raises(UsageError) as caught:
        size(card, **settings)
    assert caught.value.code == code


def names(*outputs, frames=5, prompt="A red circle, moving!", seed=0):
    jobs = [Job({"prompt": prompt}, output) for output in outputs]
    requests = [Request(prompt, frames=frames, seed=seed) for _ in outputs]
    return [Path(name).as_posix() for name in plan_outputs(jobs, requests)]


def test_names_made_from_prompts_never_replace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = "output/a-red-circle-moving-seed0"
    assert names(None, None) == [f"{first}.mp4", f"{first}-2.mp4"]
    Path(f"{first}.mp4").write_bytes(b"mine")
    assert names(None) == [f"{first}-2.mp4"]
    assert names(None, frames=1) == [f"{first}.png"]
    assert names(None, prompt="★ ☆") == ["output/video-seed0.mp4"]
    [long] = names(None, prompt="ü漢字" * 100, seed=2**62)
    assert len(f".{Path(long).name}.partial".encode()) < 255
    assert {p.name for p in Path("output").iterdir()} == {Path(f"{first}.mp4").name}


def test_given_names_are_tried_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        names("a.mp4", "a.mp4")
    assert caught.value.code == "output-twice"
    with pytest.raises(UsageError, match=r"\.avi"):
        names("a.mp4", "b.avi")
    (tmp_path / "file").write_text("")
    with pytest.raises(MediaError):
        names("file/video.mp4")
    assert names("new/folder/x.gif") == ["new/folder/x.gif"]
