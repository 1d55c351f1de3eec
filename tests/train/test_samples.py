"""Videos drawn while training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.runs import settings
from turbodiffusion.errors import UsageError
from turbodiffusion.media.read import read_video
from turbodiffusion.train import samples
from turbodiffusion.train.run import open_trainer


def test_samples_are_drawn_with_the_average_and_change_nothing(alone, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(samples, "_STEPS", 2)
    config = settings("flow", tmp_path, steps=1, sample_every=1)
    trainer = open_trainer(config, alone, quiet=True)
    seen = []
    draw = trainer.draw
    weights = trainer.networks["student"].head.head.bias
    trainer.average.values["head.head.bias"].fill_(0.25)
    trainer.average.update = lambda beta: None

    def watched(iteration, batch) -> None:
        seen.append((iteration, float(weights.to_local().min())))
        draw(iteration, batch)

    trainer.draw = watched
    trainer.run()
    assert seen == [(1, 0.25)]
    assert float(weights.to_local().min()) != 0.25
    video = tmp_path / "samples" / "iter_000000001.mp4"
    frames = read_video(video).frames
    assert tuple(frames.shape[-4:-1]) == (9, 32, 32)


def test_a_model_without_an_autoencoder_is_told_before_training(alone, tmp_path: Path):
    config = settings("flow", tmp_path, sample_every=1, vae=str(tmp_path / "no.safetensors"))
    with pytest.raises(UsageError, match=r"no\.safetensors") as error:
        open_trainer(config, alone, quiet=True)
    assert "--set vae=FILE" in error.value.fix
