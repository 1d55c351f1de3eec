"""Training goes on after a kill, from the last save, to the same bits."""

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

from tests.mini import nano
from turbodiffusion.errors import WeightsError
from turbodiffusion.mini import export, train_vae
from turbodiffusion.mini.recipe import Opening
from turbodiffusion.mini.state import StageClock, load_state, save_state
from turbodiffusion.mini.train_teacher import train_teacher
from turbodiffusion.weights.load import load_vae
from turbodiffusion.weights.read import open_checkpoint

VAE_STEPS, DECODER_STEPS, TEACHER_STEPS = 16, 6, 50
SIZE = nano.nano(
    nano.vae_recipe(steps=VAE_STEPS),
    decoder=nano.vae_recipe(steps=DECODER_STEPS, seed=33),
    # Both phases, a pool that is renewed while it is used, and a number of steps that is no
    # multiple of the interval at which processes compare their clocks.
    teacher=nano.teacher_recipe(
        steps=TEACHER_STEPS,
        opening=Opening(share=0.3, frames=5, batch=4),
        pool=40,
        first_pool=20,
        refresh=2.5,
        matrix_lr=2e-3,
    ),
)


@pytest.fixture(autouse=True)
def few_statistics(monkeypatch):
    monkeypatch.setattr(train_vae, "STAT_CLIPS", 8)


def run_vae(folder, minutes=None):
    return train_vae.train_vae(SIZE, folder, nano.CPU, minutes)


def run_teacher(folder, minutes=None):
    return train_teacher(SIZE, folder, nano.CPU, minutes)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Both stages without any interruption."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_vae, "STAT_CLIPS", 8)
        assert run_vae(folder)["complete"] and run_teacher(folder)["complete"]
    return folder


def tensors(folder, name):
    """Everything the state holds that is not a time."""
    state = load_state(folder / f"{name}.state")
    optim = state["optim"]
    flat = {f"master {k}": v for k, v in optim["master"].items()}
    flat |= {f"ema {k}": v for k, v in optim["ema"].items()}
    flat |= {f"muon {i}": v for i, v in enumerate(optim["muon"])}
    for key, values in optim["adam"]["state"].items():
        flat |= {f"adam {key} {k}": v for k, v in values.items()}
    return flat


def assert_same(one, other, name, part):
    first, second = tensors(one, name), tensors(other, name)
    assert first.keys() == second.keys()
    different = [key for key, value in first.items() if not torch.equal(value, second[key])]
    assert not different
    stored = [export.file(SIZE, folder, part).read_bytes() for folder in (one, other)]
    start = [8 + int.from_bytes(data[:8], "little") for data in stored]
    assert stored[0][start[0] :] == stored[1][start[1] :], "the weights that are shipped"


CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[3]))
from tests.mini import nano, test_resume
from turbodiffusion.mini import train_vae
from turbodiffusion.mini.train_teacher import train_teacher
stage = {"vae": train_vae.train_vae, "teacher": train_teacher}[sys.argv[1]]
stage(test_resume.SIZE, Path(sys.argv[2]), nano.CPU, None, 0.0)  # saves after every step
"""


def kill_in_the_middle(name, folder, step):
    """Train in a process of its own, kill it without notice once ``step`` is saved."""
    state_file = folder / f"{name}.state"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CHILD, name, str(folder), str(torch.get_num_threads())]
    child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    try:
        for _ in range(6000):
            assert child.poll() is None, "it ended before it was killed"
            if state_file.exists() and load_state(state_file)["step"] >= step:
                break
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait(60)
    return load_state(state_file)["step"]


def test_vae_killed_and_continued(straight, tmp_path):
    saved = kill_in_the_middle("vae", tmp_path, 3)
    assert 3 <= saved < VAE_STEPS
    assert not export.file(SIZE, tmp_path, "vae").exists()
    report = run_vae(tmp_path)
    assert report["complete"] and report["steps"] == VAE_STEPS
    assert_same(straight, tmp_path, "vae", "vae")


def test_teacher_killed_and_continued(straight, tmp_path):
    (tmp_path / "nano_vae.safetensors").write_bytes(
        (straight / "nano_vae.safetensors").read_bytes()
    )
    saved = kill_in_the_middle("teacher", tmp_path, 18)
    assert 18 <= saved < TEACHER_STEPS
    report = run_teacher(tmp_path)
    assert report["complete"] and report["steps"] == TEACHER_STEPS
    assert_same(straight, tmp_path, "teacher", "t2v_teacher")
    assert_same(straight, tmp_path, "teacher", "text")
    original = export.read_report(SIZE, straight)["teacher"]
    assert report["samples"] == original["samples"] == TEACHER_STEPS * 4
    assert report["loss"] == original["loss"]


class Pauses:
    """Ends every run after ``steps`` steps, as --run-minutes does after a time."""

    def __init__(self, monkeypatch, steps):
        self.begun = {}
        monkeypatch.setattr(
            StageClock,
            "pause",
            property(lambda c: c.step - self.begun.setdefault(c, c.step) >= steps),
        )


def test_vae_in_many_runs(straight, tmp_path, monkeypatch):
    Pauses(monkeypatch, 5)
    reports = [run_vae(tmp_path) for _ in range(4)]
    assert [r["complete"] for r in reports] == [False, False, False, True]
    assert [r["step"] for r in reports[:3]] == [5, 10, 15]
    assert_same(straight, tmp_path, "vae", "vae")
    assert reports[3]["seconds"] >= reports[2]["seconds"] >= reports[0]["seconds"] > 0


def test_teacher_in_many_runs(straight, tmp_path, monkeypatch):
    (tmp_path / "nano_vae.safetensors").write_bytes(
        (straight / "nano_vae.safetensors").read_bytes()
    )
    Pauses(monkeypatch, 16)
    reports = [run_teacher(tmp_path) for _ in range(4)]
    assert [(r["complete"], r["steps"]) for r in reports] == [
        (False, 16), (False, 32), (False, 48), (True, 50),
    ]  # fmt: skip
    assert_same(straight, tmp_path, "teacher", "t2v_teacher")
    assert_same(straight, tmp_path, "teacher", "text")


def test_a_finished_stage_stays_as_it_is(straight):
    """Asked for again, it keeps the report of the machine that trained it."""
    path = export.update_report(SIZE, straight, quality={"rows": []})
    stored = export.read_report(SIZE, straight)
    files = {p: p.stat().st_mtime_ns for p in straight.iterdir()}
    assert run_vae(straight) == stored["vae"]
    assert run_teacher(straight) == stored["teacher"]
    assert {p: p.stat().st_mtime_ns for p in straight.iterdir()} == files
    assert path in files


def test_everything_is_logged_and_recorded(straight):
    lines = [json.loads(line) for line in (straight / "vae.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 0 and {"loss", "psnr", "grad", "seconds", "progress"} <= set(
        lines[0]
    )
    report = export.read_report(SIZE, straight)
    for name, recipe in (("vae", SIZE.vae), ("teacher", SIZE.teacher)):
        stage = report[name]
        assert stage["complete"] and stage["steps"] == recipe.steps
        assert stage["recipe"]["seed"] == recipe.seed and stage["recipe"]["batch"] == recipe.batch
        assert stage["seconds"] > 0 and stage["device"].startswith("CPU") and stage["torch"]
    assert len(report["vae"]["latent_std"]) == 8 and min(report["vae"]["latent_std"]) > 0


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "pickle"])
def test_a_damaged_state_is_an_error(tmp_path, damage):
    path = tmp_path / "vae.state"
    save_state(path, {"step": 3, "values": torch.ones(1000)})
    whole = path.read_bytes()
    if damage == "pickle":
        torch.save({"step": Path("x")}, path)  # an object is no plain state
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"<html>", "empty": b""}[damage])
    before = path.read_bytes()
    with pytest.raises(WeightsError, match=r"vae\.state") as caught:
        run_vae(tmp_path)
    assert caught.value.code == "mini-state-damaged"
    assert path.read_bytes() == before, "it is the user who deletes it"


def test_a_state_of_another_size_is_an_error(straight, tmp_path):
    (tmp_path / "vae.state").write_bytes((straight / "teacher.state").read_bytes())
    with pytest.raises(WeightsError, match="not of this stage and size") as caught:
        run_vae(tmp_path)
    assert caught.value.code == "mini-state-other"
    save_state(tmp_path / "vae.state", {"step": 3})
    with pytest.raises(WeightsError, match="optim"):
        run_vae(tmp_path)


def run_decoder(folder):
    return train_vae.train_vae(SIZE, folder, nano.CPU, stage="decoder")


def loaded(folder):
    return load_vae(folder / "nano_vae.safetensors", nano.NANO.vae)


def test_a_decoder_is_refined_and_its_latents_stay(straight, tmp_path, monkeypatch):
    for name in ("nano_vae.safetensors", "nano_report.json", "vae.state", "teacher.state"):
        (tmp_path / name).write_bytes((straight / name).read_bytes())
    before = loaded(tmp_path)
    twin = shutil.copytree(tmp_path, tmp_path / "twin")
    report = run_decoder(tmp_path)
    after = loaded(tmp_path)
    assert export.latents_id(before) == export.latents_id(after)
    changed = {
        key.split(".")[0]
        for key, value in before.state_dict().items()
        if not torch.equal(value, after.state_dict()[key])
    }
    assert changed == {"decoder", "conv2"}
    assert report["stage"] == "decoder" and report["recipe"]["seed"] == 33
    assert report["after"]["stage"] == "vae" and report["after"]["recipe"]["seed"] == 31
    assert report["latent_std"] == report["after"]["latent_std"]
    assert export.read_report(SIZE, tmp_path)["vae"] == report
    refined = (tmp_path / "nano_vae.safetensors").read_bytes()
    assert run_decoder(tmp_path) == report
    assert run_vae(tmp_path) == report, "the stage before it does not undo it"
    assert (tmp_path / "nano_vae.safetensors").read_bytes() == refined
    assert run_teacher(tmp_path)["complete"], "a teacher of the same latents may go on"
    with monkeypatch.context() as patch:
        Pauses(patch, 4)
        assert not run_decoder(twin)["complete"]
    assert run_decoder(twin)["complete"]
    assert_same(tmp_path, twin, "decoder", "vae")


def test_no_stage_goes_on_with_other_latents(straight, tmp_path, monkeypatch):
    (tmp_path / "nano_vae.safetensors").write_bytes(
        (straight / "nano_vae.safetensors").read_bytes()
    )
    with monkeypatch.context() as patch:
        Pauses(patch, 8)
        run_teacher(tmp_path)
    vae = loaded(tmp_path)
    with torch.no_grad():
        vae.encoder.conv1.bias[0] += 0.5
    export.save_vae(SIZE, vae, export.read_report(SIZE, straight)["vae"], tmp_path)
    with pytest.raises(WeightsError, match="another autoencoder") as caught:
        run_teacher(tmp_path)
    assert caught.value.code == "mini-state-latents"


def test_a_teacher_starts_from_exported_weights(straight, tmp_path, monkeypatch):
    for name in ("nano_vae.safetensors", "nano_report.json"):
        (tmp_path / name).write_bytes((straight / name).read_bytes())
    size = replace(SIZE, teacher=replace(SIZE.teacher, lr=0.0))
    with monkeypatch.context() as patch:
        Pauses(patch, 8)
        train_teacher(size, tmp_path, nano.CPU, init=straight)
    for part in ("t2v_teacher", "text"):
        first, second = (
            open_checkpoint(export.file(SIZE, folder, part)) for folder in (straight, tmp_path)
        )
        for key in first.keys():  # noqa: SIM118 (a checkpoint is not a dict)
            assert torch.equal(first.tensor(key), second.tensor(key)), key
    report = train_teacher(size, tmp_path, nano.CPU)
    assert report["after"]["recipe"]["lr"] == SIZE.teacher.lr, "kept by runs that go on without it"


def test_a_kill_while_saving_leaves_the_last_state(tmp_path, monkeypatch):
    path = tmp_path / "vae.state"
    save_state(path, {"step": 1})

    class Killed(BaseException):
        pass

    def half(state, file):
        file.write(b"half of it")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(Killed):
            save_state(path, {"step": 2})
    assert load_state(path) == {"step": 1}
    save_state(path, {"step": 3})
    assert load_state(path) == {"step": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["vae.state"]
    assert load_state(tmp_path / "teacher.state") is None
