"""``turbodiffusion download`` with the transfer replaced; nothing here reaches a network."""

from __future__ import annotations

import hashlib
import json
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

    def fetch(item, folder, watch):
        hub.require_online(item.remote.name)
        fetched.append((item.remote.repository, item.remote.path))
        repository = hub.repository_folder(item.remote.repository)
        path = (folder or repository / "snapshots" / "c0") / item.remote.path
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(by_name.get(item.remote.name, models["vae"]), path)
        watch.moved(item.remote.bytes)
        return path

    monkeypatch.setattr(room, "fetch", fetch)
    monkeypatch.setattr(hub, "repository_files", lambda name: [("x.safetensors", 5, "")])
    return fetched


def test_everything_a_model_needs(remote, capsys):
    assert main(["download", tiny.I2V.name, "--quantised", "no"]) == 0
    own, base = f"TurboDiffusion/{tiny.I2V.name}", catalogue.BASE_REPOSITORY
    assert set(remote) == {
        (own, "Tiny2.2-I2V-A14B-high-720P.pth"),
        (own, "Tiny2.2-I2V-A14B-low-720P.pth"),
        (base, "Wan2.1_VAE.pth"),
        (base, "models_t5_umt5-xxl-enc-bf16.pth"),
        (base, "google/umt5-xxl/tokenizer.json"),
    }
    shown = capsys.readouterr()
    assert "GB to fetch into" in shown.out and "fetching Wan2.1_VAE.pth (0.51 GB)" in shown.err
    assert set(find(tiny.I2V.name).dit) == {"high", "low"}  # found by name afterwards
    remote.clear()
    assert main(["download", tiny.I2V.name, "--quantised", "no"]) == 0
    assert remote == [] and "Everything is here." in capsys.readouterr().out


def test_several_models_share_their_files(remote, capsys):
    assert main(["download", tiny.I2V.name, tiny.T2V.name, "micro", "--quantised", "no"]) == 0
    assert len(remote) == len(set(remote)) == 2 + 1 + 3
    assert "comes with the package" in capsys.readouterr().out


def test_into_a_folder_and_from_one(remote, models, capsys, monkeypatch, tmp_path):
    words = ["download", tiny.T2V.name, "--quantised", "no", "--dir", str(tmp_path / "usb")]
    assert main([*words, "--from", str(models["vae"].parent), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"from {models['vae']}" in out and "to copy into" in out and "to fetch" not in out
    assert main(words) == 0 and (tmp_path / "usb/google/umt5-xxl/tokenizer.json").is_file()
    assert "TURBODIFFUSION_MODELS" in capsys.readouterr().err
    monkeypatch.setenv("TURBODIFFUSION_MODELS", str(tmp_path / "usb"))
    assert find(tiny.T2V.name).vae == tmp_path / "usb/Wan2.1_VAE.pth"


def test_verify(models, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "own"
    shutil.copytree(models["vae"].parent, folder)
    for role, one in catalogue.BASE_FILES.items():
        data = (folder / one.path).read_bytes()
        found = replace(one, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        monkeypatch.setitem(catalogue.BASE_FILES, role, found)
    monkeypatch.setenv("TURBODIFFUSION_MODELS", str(folder))
    assert main(["models", "--verify"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines].count("verified") == 3
    assert any(line.startswith("recorded") and "Tiny2.1" in line for line in lines)
    assert main(["download", tiny.T2V.name, "--verify", "--quantised", "no"]) == 0
    assert "verified" in capsys.readouterr().out
    with (folder / "Wan2.1_VAE.pth").open("r+b") as file:
        file.seek(2000)
        file.write(b"rot")
    assert main(["models", "--verify", "--json"]) == 1
    states = {Path(v["path"]).name: v["state"] for v in json.loads(capsys.readouterr().out)}
    assert [name for name, state in states.items() if state == "damaged"] == ["Wan2.1_VAE.pth"]
    assert main(["download", tiny.T2V.name, "--verify"]) == 1
    assert "delete it" in capsys.readouterr().out


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


def test_foreign(remote, capsys):
    assert main(["download", "someone/wan-tuned"]) == 0
    assert remote == [("someone/wan-tuned", "x.safetensors")]


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


def test_failing_hub(remote, capsys, monkeypatch):
    def broken(item, *_):
        raise hub.download_error(item.remote.repository, item.remote.path, ConnectionError("down"))

    monkeypatch.setattr(room, "fetch", broken)
    assert main(["download", tiny.T2V.name]) == 1
    assert "ConnectionError: down" in capsys.readouterr().err


def test_ctrl_c_says_what_is_kept(remote, capsys, monkeypatch):
    def stopped(items, folder, watch):
        watch(items[0]).moved(3 * 10**8)
        raise KeyboardInterrupt

    monkeypatch.setattr("turbodiffusion.cli.download.fetch_all", stopped)
    assert main(["download", tiny.T2V.name]) == 130
    assert "Interrupted with 0.30 GB here" in capsys.readouterr().err


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


@pytest.mark.parametrize(("memory", "form"), [(0, "yes"), (23.6, "yes"), (79.1, "no")])
def test_advice_for_an_image(memory, form):
    wanted = f"turbodiffusion download TurboWan2.2-I2V-A14B-720P --quantised {form}"
    assert real_model_command(memory, image=True).startswith(wanted)
