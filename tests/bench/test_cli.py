"""The command: what it prints, stores and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from turbodiffusion.bench import ceilings, network
from turbodiffusion.bench import run as room
from turbodiffusion.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tiny(monkeypatch):
    """Shapes and ceilings that take no time."""
    monkeypatch.setattr(room, "QUICK_GRID", (2, 8, 8))
    monkeypatch.setattr(network, "CHECKED_GRID", (1, 8, 8))
    monkeypatch.setattr(room, "SECONDS", 0.01)


def test_a_run(tiny, tmp_path, capsys):
    files = tmp_path / "a.json", tmp_path / "a.md"
    command = ["bench", "ops", "--only", "rms_norm", "sla", "--device", "cpu"]
    command += ["--quick", "--seconds", "0.01"]
    assert main([*command, "--json", str(files[0]), "--markdown", str(files[1])]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("machine: ") and out[5].startswith("ceiling, copy: ")
    table = next(i for i, line in enumerate(out) if line.startswith("operator"))
    assert [line.split()[0] for line in out[table + 1 : -2]] == ["sla", "rms_norm"]
    read = json.loads(files[0].read_text("utf-8"))
    assert read["machine"]["command"] == f"turbodiffusion {' '.join(command)}"
    assert [row["operator"] for row in read["rows"]] == ["sla", "rms_norm"]
    assert all(row["reduced"] == "128 tokens, 2 heads, 2 layers" for row in read["rows"])
    assert files[1].read_text("utf-8").count("\n| ") == 3


def test_a_run_that_is_stopped_leaves_what_it_measured(tiny, monkeypatch, tmp_path):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("turbodiffusion.bench.elementwise.layer_norm", stop)
    command = ["bench", "ops", "--only", "rms_norm", "layer_norm", "--quick", "--device", "cpu"]
    path = tmp_path / "a.json"
    assert main([*command, "--seconds", "0.01", "--json", str(path)]) == 130
    assert [r["operator"] for r in json.loads(path.read_text("utf-8"))["rows"]] == ["rms_norm"]


def test_shapes_on_a_cpu_are_reduced_and_one_is_the_default():
    cpu = torch.device("cpu")
    (only,) = room.choose_shapes(room.Options(), cpu)
    assert (only.name, only.tokens, only.heads) == ("1.3b-480p", 8192, 2)
    chosen = room.choose_shapes(room.Options(shapes=("14b-720p", "14b-480p")), cpu)
    assert [s.name for s in chosen] == ["14b-480p", "14b-720p"]
    assert all(s.tokens == 8192 for s in chosen)


def test_shapes_on_a_gpu_are_the_released_ones():
    cuda = torch.device("cuda")
    assert [s.tokens for s in room.choose_shapes(room.Options(), cuda)] == [32760, 32760, 75600]
    (only,) = room.choose_shapes(room.Options(quick=True), cuda)
    assert only.tokens == 32760 and not only.reduced


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--only", "conv"], 2, "There is no row 'conv'; rows are forward, block_map, sla,"),
        (["--shapes", "5b"], 2, "There is no shape '5b'; shapes are 1.3b-480p,"),
        (["--device", "tpu9"], 2, "There is no device 'tpu9'"),
        (["--device", "cuda:99"], 3, "cuda:99 was asked for"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_errors_come_before_anything_is_measured(words, code, said, monkeypatch, capsys):
    monkeypatch.setattr(ceilings, "measure", lambda *a: pytest.fail("measured"))
    assert main(["bench", "ops", *words]) == code
    err = capsys.readouterr().err
    assert said in err and "fix:" in err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon"])
def test_seconds_must_be_a_time(seconds, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", "ops", "--seconds", seconds])
    assert caught.value.code == 2 and "--seconds" in capsys.readouterr().err


def test_a_row_that_fails_makes_the_exit_code_1(tiny, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("turbodiffusion.bench.elementwise.rms_norm", broken)
    command = ["bench", "ops", "--only", "rms_norm", "--quick", "--device", "cpu"]
    assert main(command) == 1
    assert "RuntimeError: no such kernel" in capsys.readouterr().out


def test_it_needs_no_video_library():
    code = (
        "import turbodiffusion.bench.run, sys\n"
        "print([m for m in ('av', 'pydantic', 'diffusers', 'webdataset', 'PIL', 'transformers',"
        " 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
