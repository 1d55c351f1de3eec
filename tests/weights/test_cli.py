"""`inspect`, `convert` and `models` as a user starts them."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.weights.helpers import sparse_safetensors
from turbodiffusion.cli.main import main
from turbodiffusion.models.cards import CARDS, DIT_1_3B, DIT_14B
from turbodiffusion.weights import places
from turbodiffusion.weights.spec import dit_spec
from turbodiffusion.weights.synthetic import write_synthetic

ROOT = Path(__file__).parents[2]
# Runs the command line and reports what it imported.
PROBE = (
    "import sys; from turbodiffusion.cli.main import main; code = main(sys.argv[1:]); "
    "print([m for m in ('torch', 'numpy', 'safetensors') if m in sys.modules]); sys.exit(code)"
)


def child(*words: str | Path) -> tuple[list[str], float]:
    """Output lines of a fresh interpreter, and the fastest of three runs in seconds."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *map(str, words)],
            cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip
        best = min(best, time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), best


def test_inspect_full_size_safetensors_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "TurboWan2.1-T2V-1.3B-480P.safetensors"
    sparse_safetensors(path, dit_spec(DIT_1_3B))
    assert path.stat().st_size > 2_839_537_280
    out, seconds = child("inspect", path)
    text = "\n".join(out)
    assert "TurboWan2.1-T2V-1.3B-480P\n" in text and "2.84 GB" in text and "SLA" in text
    assert out[-1] == "[]"
    assert seconds < 1


def test_inspect_pth_with_as_many_tensors_as_the_largest(tmp_path: Path) -> None:
    thin = replace(DIT_14B, dim=128, ffn_dim=128, num_heads=1, text_dim=8, freq_dim=8)
    path = write_synthetic(thin, tmp_path / "thin.pth", quantized=True)
    out, seconds = child("inspect", path)
    assert "1575" in "\n".join(out) and out[-1] == "[]"
    assert seconds < 1


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_inspect_json(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", files["int8"], "--json")
    table = json.loads(out)
    assert code == 0
    assert (
        table["kind"] == "dit"
        and table["cards"] == ["micro", "micro-teacher"]
        and table["complete"]
    )
    assert table["quantized"] is True and table["layout"] == "int8" and table["problem"] == ""
    assert table["config"]["num_layers"] == 4 and len(table["fingerprint"]) == 64
    assert table["dtypes"] == {"bf16": 67, "int8": 40, "fp32": 64}


def test_inspect_says_how_names_are_wrapped(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {f"net.{k}": v for k, v in torch.load(files["plain"]).items()}
    torch.save({"state_dict": state}, tmp_path / "m.pth")
    code, out, _ = run(capsys, "inspect", tmp_path / "m.pth")
    assert code == 0 and "state_dict" in out and "net." in out and "dense only" in out
    assert f"--model {tmp_path / 'm.pth'}" in out


def test_inspect_names_the_problem(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(files["plain"])
    torch.save({"state_dict": state, "x": argparse.Namespace()}, tmp_path / "a.pth")
    _, out, _ = run(capsys, "inspect", tmp_path / "a.pth")
    assert "problem" in out and "argparse.Namespace" in out and "use  " not in out
    del state["head.head.bias"]
    torch.save(state, tmp_path / "b.pth")
    assert "1 tensors missing: head.head.bias" in run(capsys, "inspect", tmp_path / "b.pth")[1]
    torch.save({"a.lora_A.weight": torch.ones(1)}, tmp_path / "c.pth")
    code, out, _ = run(capsys, "inspect", tmp_path / "c.pth")
    assert code == 0 and "LoRA" in out and "turbodiffusion merge" in out


def test_inspect_a_diffusers_folder(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = {"transformer": ["d", "T"], "vae": ["d", "V"], "scheduler": ["d", "S"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for name, kind in (("transformer", "plain"), ("vae", "vae")):
        (tmp_path / name).mkdir()
        shutil.copy(files[kind], tmp_path / name / "model.pth")
    code, out, _ = run(capsys, "inspect", tmp_path)
    assert code == 0 and "[transformer]" in out and "[vae]" in out
    table = json.loads(run(capsys, "inspect", tmp_path, "--json")[1])
    assert [table["networks"][n]["kind"] for n in ("transformer", "vae")] == ["dit", "vae"]


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_a_web_page_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "m.pth").write_text("<!DOCTYPE html>")
    target = [tmp_path / "o.pth"] if command == "convert" else []
    code, out, err = run(capsys, command, tmp_path / "m.pth", *target)
    assert code == 1 and not out
    assert "weights-html" in err and "turbodiffusion download" in err


def test_convert_and_back(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    middle, back = tmp_path / "m.safetensors", tmp_path / "b.pth"
    code, out, err = run(capsys, "convert", files["int8"], middle)
    assert code == 0 and "micro, int8, 171 tensors" in out and not err
    code, out, err = run(capsys, "convert", middle, back)
    assert code == 0 and "no place for metadata" in err
    assert back.read_bytes() == files["int8"].read_bytes()
    code, _, err = run(capsys, "convert", files["int8"], back)
    assert code == 2 and "convert-target-exists" in err
    assert run(capsys, "convert", files["int8"], back, "--force")[0] == 0


def test_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "data_folder", lambda: tmp_path / "package")
    monkeypatch.setenv("TURBODIFFUSION_MODELS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    code, out, _ = run(capsys, "models")
    assert code == 0 and all(name in out for name in CARDS)
    assert "28.58 GB" in out and "14.53 GB" in out and "57.16 GB" in out
    name = "TurboWan2.1-T2V-1.3B-480P"
    (tmp_path / f"{name}-quant.pth").write_bytes(b"x")
    table = {row["name"]: row for row in json.loads(run(capsys, "models", "--json")[1])}
    row = table[name]
    assert [layout["files"] for layout in row["layouts"]] == [
        {}, {"": str(tmp_path / f"{name}-quant.pth")},
    ]  # fmt: skip
    assert not row["present"]  # VAE, text encoder and tokenizer are still missing
    for path in ("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "tokenizer.json"):
        (tmp_path / path).write_bytes(b"x")
    table = {row["name"]: row for row in json.loads(run(capsys, "models", "--json")[1])}
    assert table[name]["present"] and not table["TurboWan2.1-T2V-14B-480P"]["present"]
    assert str(tmp_path / f"{name}-quant.pth") in run(capsys, "models")[1]


def test_models_without_torch() -> None:
    out, seconds = child("models")
    assert out[-1] == "[]" and seconds < 1
