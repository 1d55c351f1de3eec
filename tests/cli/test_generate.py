"""``turbodiffusion generate`` as a user meets it: exit codes, refusals, many prompts, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.pipeline import tiny
from turbodiffusion.cli.main import main
from turbodiffusion.media import read_settings, read_video
from turbodiffusion.pipeline.stages import Stages

ROOT = Path(__file__).resolve().parents[2]
MODEL = ["--model", tiny.T2V.name, "--steps", "1", "--frames", "1"]
OUT_OF_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 99999999999 bytes. Error code 12 (Cannot allocate memory)"
)


def code_of(capsys, *words: object) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["generate", *map(str, words)])
    return code, capsys.readouterr().err


@pytest.fixture
def no_loading(monkeypatch):
    """Whoever loads weights fails the test."""
    import turbodiffusion.pipeline.batch as batch

    def refuse(*_, **__):
        raise AssertionError("weights were loaded before the request was checked")

    monkeypatch.setattr(batch, "open_pipeline", refuse)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--frames", "8"], "Use 5 or 9."),
        (["--frames", "0"], "Use 1."),
        (["--resolution", "50x32"], "Use 48 or 56."),
        (["--resolution", "big"], "832x480"),
        (["--steps", "0"], "Use --steps 1"),
        (["--steps", "50"], "--baseline"),
        (["--seed", "-1"], "sampling-seed"),
        (["--num", "0"], "num-illegal"),
        (["--sigma-max", "-1"], "sigma-illegal"),
        (["--image", "x.png"], "image-unused"),
        (["--output", "x.avi"], ".avi"),
        (["--aspect", "7:3"], "media-aspect"),
        (["--model", "Wan9"], "card-unknown"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_refused_before_loading(models, no_loading, capsys, words, said):
    code, err = code_of(capsys, "a circle", "--model", tiny.T2V.name, *words)
    assert code == 2 and said in err and "fix: " in err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "none.pth"], "There is no checkpoint at none.pth"),
        (["--model", "TurboWan2.1-T2V-14B-720P"], "turbodiffusion download TurboWan2.1-T2V-14B"),
        (["--model", tiny.T2V.name, "--vae", "none.pth"], "There is no vae at none.pth"),
        (["--model", tiny.I2V.name, "--image", "none.png"], "There is no image none.png"),
        (["--like", "none.mp4"], "There is no file none.mp4"),
    ],
    ids=lambda v: v[-1] if isinstance(v, list) else "",
)
def test_missing_files(models, no_loading, capsys, words, said):
    code, err = code_of(capsys, "a circle", *words)
    assert code == 1 and said in err


def test_no_prompt(models, no_loading, capsys):
    code, err = code_of(capsys)
    assert code == 2 and "turbodiffusion generate" in err


def test_many_prompts_with_one_load(models, capsys, monkeypatch):
    room = import_module("turbodiffusion.pipeline.load")  # `import as` would give the function
    loads = []
    real = room.load
    monkeypatch.setattr(room, "load", lambda *a, **k: loads.append(1) or real(*a, **k))
    Path("p.txt").write_text(
        'a red circle\n{"prompt": "a blue square", "seed": 4, "output": "own.png"}\na red circle\n'
    )
    assert main(["generate", *MODEL, "--prompts", "p.txt", "--num", "2", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = [Path(line["path"]).name for line in lines]
    assert names == [
        "a-red-circle-seed0.png", "a-red-circle-seed1.png", "own-000.png", "own-001.png",
        "a-red-circle-seed0-2.png", "a-red-circle-seed1-2.png",
    ]  # fmt: skip
    assert len(loads) == 1
    assert [line["settings"]["seed"] for line in lines] == [0, 1, 4, 5, 0, 1]
    for line in lines:
        assert read_settings(line["path"]) == line["settings"]


def test_one_failing_job_does_not_stop_the_others(models, capsys, monkeypatch):
    real = Stages.encode_prompts

    def encode(self, prompts):
        if "heavy" in prompts[0]:
            raise RuntimeError(OUT_OF_MEMORY)
        return real(self, prompts)

    monkeypatch.setattr(Stages, "encode_prompts", encode)
    Path("p.txt").write_text("first\nheavy\nlast\n")
    words = ["generate", *MODEL, "--prompts", "p.txt", "--output", "clip.png", "--json"]
    assert main(words) == 1
    shown = capsys.readouterr()
    lines = [json.loads(line) for line in shown.out.splitlines()]
    assert [line.get("error", {}).get("code") for line in lines] == [None, "memory-exhausted", None]
    assert sorted(p.name for p in Path().glob("*.png")) == ["clip-000.png", "clip-002.png"]
    assert "memory-exhausted" in shown.err


def test_one_wrong_line_costs_nothing(models, no_loading, capsys):
    Path("p.txt").write_text('first\n{"prompt": "x", "steps": "four"}\n')
    code, err = code_of(capsys, *MODEL, "--prompts", "p.txt")
    assert code == 2 and "'four'" in err


@pytest.mark.parametrize("error", [RuntimeError(OUT_OF_MEMORY), MemoryError()], ids=["torch", "py"])
def test_out_of_memory_is_4(models, capsys, monkeypatch, error):
    def denoise(*_, **__):
        raise error

    monkeypatch.setattr(Stages, "denoise", denoise)
    code, err = code_of(capsys, "a circle", *MODEL)
    assert code == 4 and "The computer ran out of memory" in err and "Traceback" not in err
    assert list(Path("output").iterdir()) == []


def test_other_errors_show_their_traceback(models, capsys, monkeypatch):
    def denoise(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Stages, "denoise", denoise)
    code, err = code_of(capsys, "a circle", *MODEL)
    assert code == 1 and "Traceback" in err


def test_debug_adds_the_traceback(models, capsys):
    code, err = code_of(capsys, "a circle", "--frames", "8", *MODEL[:2], "--debug")
    assert code == 2 and "Traceback" in err and "frames-illegal" in err


def test_json_error(models, no_loading, capsys):
    assert main(["generate", "x", *MODEL, "--steps", "9", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "steps-illegal"


def test_flags_without_effect_are_said(models, capsys):
    code, err = code_of(capsys, "a circle", *MODEL, "--guidance", "5", "--attention", "dense",
                        "--topk", "0.2")  # fmt: skip
    assert code == 0
    assert "warning: guidance: without effect" in err
    assert "warning: topk 0.2 is without effect" in err


def test_formats_by_extension(models):
    for name in ("a.gif", "a.webm", "a.mp4"):
        words = ["generate", "x", *MODEL[:4], "--frames", "5", "--output", name]
        assert main(words) == 0
        assert len(read_video(name)) == 5


def test_one_frame_is_a_picture(models, capsys):
    code, err = code_of(capsys, "x", *MODEL, "--output", "b.mp4")
    assert code == 0 and err.count("One frame is a picture") == 1
    assert [p.name for p in Path().iterdir()] == ["b.jpg"]


def child(*words: str, **more) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.pipeline.tiny", *words], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
    )  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
def test_ctrl_c_keeps_what_is_finished(models):
    def listens() -> None:
        """A shell's background jobs start with Ctrl-C ignored, and hand that on."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    Path("p.txt").write_text("a red circle\n" * 500)
    words = ["generate", "--model", tiny.T2V.name, "--prompts", "p.txt", "--output", "o/c.mp4"]
    run = child(*words, preexec_fn=listens)
    assert run.stdout is not None
    finished = [run.stdout.readline().strip() for _ in range(2)]
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=30)
    assert run.returncode == 130, err
    assert "Interrupted" in err and "Traceback" not in err
    finished += out.split()
    assert sorted(p.name for p in Path("o").iterdir()) == sorted(Path(f).name for f in finished)
    assert 2 <= len(finished) < 500
    for path in finished:
        assert len(read_video(path)) == 9


def test_names_that_the_console_cannot_show(models, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    run = child("generate", "圆", *MODEL)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    assert "\\u5706" in out and Path("output/圆-seed0.png").exists()
