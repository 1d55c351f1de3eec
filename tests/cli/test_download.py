"""``turbodiffusion download`` with the hub's functions replaced; nothing here reaches a network."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.pipeline import tiny
from turbodiffusion.cli.main import main
from turbodiffusion.models.cards import CARDS
from turbodiffusion.pipeline.advice import prefers_quantised, real_model_command
from turbodiffusion.weights import catalogue, hub
from turbodiffusion.weights import download as room
from turbodiffusion.weights.find import find


@pytest.fixture
def remote(models, monkeypatch, tmp_path):
    """A hub that serves the tiny files under the published names, from an empty machine."""
    monkeypatch.setenv("TURBODIFFUSION_MODELS", str(tmp_path / "nothing"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    by_name = {Path(file).name: models[key] for key, file in tiny.FILES.items()}
    for role, one in catalogue.BASE_FILES.items():
        digest = hashlib.sha256(by_name[one.name].read_bytes()).hexdigest()
        monkeypatch.setitem(catalogue.BASE_FILES, role, replace(one, sha256=digest))
    fetched = []

    def hf_hub_download(repo_id, filename):
        fetched.append((repo_id, filename))
        snapshot = hub.cache_folder() / f"models--{repo_id.replace('/', '--')}" / "snapshots" / "c0"
        path = snapshot / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(by_name[Path(filename).name], path)
        return str(path)

    def snapshot_download(repo_id, allow_patterns):
        fetched.append((repo_id, tuple(allow_patterns)))
        return "snapshot-folder"

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return fetched


def test_everything_a_model_needs(remote, capsys):
    assert main(["download", tiny.I2V.name, "--quantised", "no"]) == 0
    own, base = f"TurboDiffusion/{tiny.I2V.name}", catalogue.BASE_REPOSITORY
    assert remote == [
        (own, "Tiny2.2-I2V-A14B-high-720P.pth"),
        (own, "Tiny2.2-I2V-A14B-low-720P.pth"),
        (base, "Wan2.1_VAE.pth"),
        (base, "models_t5_umt5-xxl-enc-bf16.pth"),
        (base, "google/umt5-xxl/tokenizer.json"),
    ]
    shown = capsys.readouterr()
    assert "GB to fetch into" in shown.out and "fetching Wan2.1_VAE.pth (0.51 GB)" in shown.err
    assert set(find(tiny.I2V.name).dit) == {"high", "low"}  # found by name afterwards
    remote.clear()
    assert main(["download", tiny.I2V.name, "--quantised", "no"]) == 0
    assert remote == [] and "Everything is here." in capsys.readouterr().out


def test_what_is_here_is_not_fetched(remote, models, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_MODELS", str(models["vae"].parent))
    assert main(["download", tiny.T2V.name]) == 0
    assert remote == []


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ([tiny.T2V.name, "--quantised", "no"], "Tiny2.1-T2V-1.3B-480P.pth"),
        ([tiny.T2V.name, "--quantised", "yes"], "Tiny2.1-T2V-1.3B-480P-quant.pth"),
        ([tiny.T2V.name + "-quant"], "Tiny2.1-T2V-1.3B-480P-quant.pth"),
        ([f"TurboDiffusion/{tiny.T2V.name}", "--quantised", "no"], "Tiny2.1-T2V-1.3B-480P.pth"),
    ],
    ids=["no", "yes", "name", "hub-id"],
)
def test_layouts(remote, capsys, words, file):
    assert main(["download", *words, "--dry-run"]) == 0
    assert remote == []
    assert f" {file} " in capsys.readouterr().out


def test_embedded_and_foreign(remote, capsys):
    assert main(["download", "micro"]) == 0
    assert "comes with the package" in capsys.readouterr().out and remote == []
    assert main(["download", "someone/wan-tuned"]) == 0
    assert remote[0][0] == "someone/wan-tuned" and "*.py" not in remote[0][1]


def test_unknown_name(remote, capsys):
    assert main(["download", "Wan9"]) == 2
    assert "TurboWan2.1-T2V-1.3B-480P" in capsys.readouterr().err


def test_offline(remote, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["download", tiny.T2V.name, "--dry-run"]) == 0
    assert main(["download", tiny.T2V.name]) == 1
    assert "weights-offline" in capsys.readouterr().err and remote == []


def test_full_disk(remote, capsys, monkeypatch):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    assert main(["download", tiny.T2V.name]) == 4
    err = capsys.readouterr().err
    assert "disk-full" in err and "1.00 GB are free" in err and remote == []


def test_damaged_file(remote, capsys, monkeypatch):
    vae = catalogue.BASE_FILES["vae"]
    monkeypatch.setitem(catalogue.BASE_FILES, "vae", replace(vae, sha256="0" * 64))
    assert main(["download", tiny.T2V.name]) == 1
    assert "weights-hash" in capsys.readouterr().err


def test_failing_hub(remote, capsys, monkeypatch):
    import huggingface_hub

    def broken(**_):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    assert main(["download", tiny.T2V.name]) == 1
    assert "ConnectionError: no route" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (0, "1.3B-480P --quantised yes   (made for"),
        (7.8, "1.3B-480P --quantised yes"),
        (11.9, "1.3B-480P --quantised no"),
        (15.7, "14B-480P --quantised yes"),
        (23.6, "14B-720P --quantised yes"),
        (79.1, "14B-720P --quantised no"),
    ],
)
def test_advice(memory, words):
    command = real_model_command(memory)
    assert words in command
    name = command.split()[2]
    assert name in CARDS
    assert prefers_quantised(name, memory) is ("--quantised yes" in command)
