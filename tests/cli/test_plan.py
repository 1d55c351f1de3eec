"""``turbodiffusion plan`` as a user starts it."""

from __future__ import annotations

import json

import pytest

from turbodiffusion.cli.main import main
from turbodiffusion.memory.gpus import GPUS

LARGE = "TurboWan2.1-T2V-14B-720P"


@pytest.fixture(autouse=True)
def empty_machine(monkeypatch, tmp_path):
    """No files, no recorded rates."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TURBODIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TURBODIFFUSION_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)


def test_another_machine(capsys):
    assert main(["plan", LARGE, "--gpu", "RTX 5090", "--vram", "32", "--ram", "64"]) == 0
    out = capsys.readouterr().out
    assert "RTX 5090, 30.4 GiB" in out and "It fits." in out and "8-bit weights" in out
    assert "26.42 GB to download (35 min at 100 Mbit/s)" in out
    assert out.count("estimate") == 3
    assert main(["plan", LARGE, "--gpu", "RTX 5090", "--mbit", "500"]) == 0
    assert "(7 min at 500 Mbit/s)" in capsys.readouterr().out


def test_nothing_fits(capsys):
    assert main(["plan", LARGE, "--gpu", "RTX 4060", "--vram", "4"]) == 4
    assert "It does not fit: the phase 'denoise' needs" in capsys.readouterr().out


def test_json(capsys):
    words = ["plan", LARGE, "--gpu", "3060", "--resolution", "480p", "--frames", "17", "--json"]
    assert main(words) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["schema"] == 1 and table["fits"] and table["problem"] is None
    assert table["request"] == {
        "width": 832, "height": 480, "frames": 17, "steps": 4, "baseline": False,
    }  # fmt: skip
    assert [p["name"] for p in table["phases"]] == ["text", "denoise", "decode"]
    assert table["gpu_peak"] == max(p["gpu"] for p in table["phases"])
    assert table["seconds"] == pytest.approx(sum(p["seconds"] for p in table["phases"]))
    assert table["download"] == table["disk"] > 2e10


def test_baseline_takes_longer(capsys):
    seconds = {}
    for more in ((), ("--baseline",), ("--steps", "2")):
        assert main(["plan", LARGE, "--gpu", "H200", "--json", *more]) == 0
        seconds[more] = json.loads(capsys.readouterr().out)["seconds"]
    assert seconds["--steps", "2"] < seconds[()] < seconds["--baseline",] / 10


def test_image_to_video_encodes_first(capsys):
    assert main(["plan", "TurboWan2.2-I2V-A14B-720P", "--gpu", "RTX 5090"]) == 0
    out = capsys.readouterr().out
    assert "condition" in out and "40.95 GB" in out


def test_this_machine_and_the_embedded_model(capsys):
    assert main(["plan", "micro", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("micro: 64×64, 17 frames, 4 steps\non CPU")
    assert "download" not in out


def test_an_unknown_gpu_is_taken_for_a_newer_one_and_that_is_said(capsys):
    words = ["plan", LARGE, "--gpu", "RTX 2080", "--vram", "24"]
    assert main(words) == 0
    assert "taken for one that the kernels run on" in capsys.readouterr().out
    assert main(["plan", LARGE, "--gpu", "RTX 4090"]) == 0
    assert "taken for" not in capsys.readouterr().out


def test_table_of_gpus(capsys):
    assert main(["plan", "--gpu", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(GPUS) + 1 and any("1792 GB/s" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([LARGE, "--gpu", "RTX 2080"], "plan-gpu"),
        ([LARGE, "--gpu", "4090", "--vram", "0"], "plan-memory"),
        (["Wan9"], "card-unknown"),
        ([LARGE, "--frames", "80"], "frames-illegal"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_mistakes(capsys, words, code):
    assert main(["plan", *words]) == 2
    assert code in capsys.readouterr().err
