"""Videos drawn while training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.train.runs import curve, local, settings
from turbodiffusion.errors import SetupError, UsageError
from turbodiffusion.media.read import read_video
from turbodiffusion.media.settings import read_settings
from turbodiffusion.sampling.noise import draw_noise
from turbodiffusion.sampling.schedule import model_timestep
from turbodiffusion.train import samples
from turbodiffusion.train.run import open_trainer

FEW_STEPS = {"sample_every": 1, "sample_steps": 2, "steps": 1}


def test_samples_are_drawn_with_the_average_and_change_nothing(alone, tmp_path: Path):
    config = settings("flow", tmp_path, **FEW_STEPS)
    trainer = open_trainer(config, alone, quiet=True)
    seen = []
    draw = trainer.draw
    weights = trainer.networks["student"].head.head.bias
    trainer.average.values["head.head.bias"].fill_(0.25)
    trainer.average.update = lambda beta: None

    def watched(iteration):
        seen.append((iteration, float(local(weights.detach()).min())))
        return draw(iteration)

    trainer.draw = watched
    trainer.run()
    assert seen == [(1, 0.25)]
    assert float(local(weights.detach()).min()) != 0.25
    video = tmp_path / "samples" / "iter_000000001.mp4"
    assert tuple(read_video(video).frames.shape[-4:-1]) == (9, 32, 2 * 32)  # two prompts
    assert read_settings(video)["rows"] == ["student"]


def test_a_distilled_run_shows_few_calls_above_the_teacher(alone, tmp_path: Path):
    config = settings("rcm", tmp_path, sample_prompts=3, sample_seeds=2, ema=0.0, **FEW_STEPS)
    trainer = open_trainer(config, alone, quiet=True)
    trainer.run()
    video = tmp_path / "samples" / "iter_000000001.mp4"
    # Two samples a step in parts of one: the third prompt is the next step's first.
    assert tuple(read_video(video).frames.shape[-4:-1]) == (9, 4 * 32, 6 * 32)
    stored = read_settings(video)
    assert stored["rows"] == ["student_1", "student_2", "student_4", "teacher"]
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    found = {name: line[f"sample_mse_{name}"] for name in (1, 2, 4)}
    assert all(0 < value < 100 for value in found.values()) and len(set(found.values())) == 3

    batch, student = trainer.draw.batch, trainer.networks["student"]
    first = trainer.source.batch(1, 0).context_BSD[0]
    assert torch.equal(batch.context_BSD[4], first) and torch.equal(batch.context_BSD[5], first)
    # One call by hand: x0 = x − t·v from σ = 80; equal columns of noise for every prompt.
    t = 80 / 81
    x = (draw_noise((2, *batch.latents_BCTHW.shape[1:]), 0).double() * t).repeat(3, 1, 1, 1, 1)
    with torch.no_grad():
        v = student(x.float(), model_timestep(t).expand(6, 1), batch.context_BSD, None)
    mse = (x - t * v.double() - trainer.draw.teacher).square().mean()
    assert float(mse) == pytest.approx(found[1], rel=1e-5)


def test_a_sparse_student_stands_above_its_teacher(alone, tmp_path: Path):
    all_keys = {"loss": {"topk": 1.0}}
    trainer = open_trainer(settings("sla", tmp_path, **FEW_STEPS, **all_keys), alone, quiet=True)
    assert trainer.draw(0)["sample_mse"] < 1e-9  # nothing is left out, and proj_l is zero
    with torch.no_grad():
        trainer.networks["student"].head.head.bias += 0.1
    assert trainer.draw(1)["sample_mse"] > 1e-3
    rows = read_settings(tmp_path / "samples" / "iter_000000001.mp4")["rows"]
    assert rows == ["student", "teacher"]


def test_a_merged_student_is_drawn_in_few_calls_like_its_dense_one(alone, tmp_path: Path):
    all_keys = {"loss": {"topk": 1.0}}
    trainer = open_trainer(settings("align", tmp_path, **FEW_STEPS, **all_keys), alone, quiet=True)
    calls = {"student": 0, "teacher": 0}
    for role in calls:
        network = getattr(trainer.objective.networks, role)
        network.register_forward_pre_hook(
            lambda module, inputs, role=role: calls.update({role: calls[role] + 1})
        )
    assert trainer.draw(0)["sample_mse"] < 1e-9
    assert calls == {"student": 4, "teacher": 4}


def test_samples_wait_for_the_next_report(alone, tmp_path: Path):
    changes = {**FEW_STEPS, "steps": 4, "sample_every": 2, "log_every": 3}
    trainer = open_trainer(settings("sla", tmp_path, **changes), alone, quiet=True)
    trainer.draw = lambda iteration: {"sample_mse": float(iteration)}
    trainer.run()
    assert curve(tmp_path, ("sample_mse",)) == [[3, 2.0]]


def test_training_goes_on_where_samples_cannot_be_written(alone, tmp_path: Path):
    trainer = open_trainer(settings("flow", tmp_path, **FEW_STEPS), alone, quiet=True)
    (tmp_path / "samples").write_text("no folder")
    with pytest.warns(UserWarning, match=r"not written: .*iter_000000001\.mp4"):
        assert trainer.run()["complete"]


def test_without_pyav_samples_are_gifs(alone, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert samples.video_suffix() == ".gif"
    trainer = open_trainer(settings("flow", tmp_path, **FEW_STEPS), alone, quiet=True)
    trainer.draw(7)
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["iter_000000007.gif"]
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(SetupError, match="Pillow"):
        open_trainer(settings("flow", tmp_path, **FEW_STEPS), alone, quiet=True)
    open_trainer(settings("flow", tmp_path), alone, quiet=True)  # without samples, none is needed


def test_a_model_without_an_autoencoder_is_told_before_training(alone, tmp_path: Path):
    config = settings("flow", tmp_path, sample_every=1, vae=str(tmp_path / "no.safetensors"))
    with pytest.raises(UsageError, match=r"no\.safetensors") as error:
        open_trainer(config, alone, quiet=True)
    assert "--set vae=FILE" in error.value.fix
