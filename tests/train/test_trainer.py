"""The loop: resumed, killed, out of disk, and with gradients that are broken."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.parallel.launch import ROOT
from tests.train import runs
from tests.train.runs import curve, settings
from turbodiffusion.errors import CapacityError, TurboDiffusionError
from turbodiffusion.train import checkpoints as saving
from turbodiffusion.train.losses import LossParts, Phase
from turbodiffusion.train.run import open_trainer
from turbodiffusion.train.trainer import Trainer


def whole(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of everything that a checkpoint holds."""
    tensors = trainer._tensors()
    flat = dict(tensors["model"])
    for role, state in tensors["optim"].items():
        flat |= {f"{role}.{name}": v for name, v in state.items() if isinstance(v, torch.Tensor)}
    return {n: (v.to_local() if hasattr(v, "to_local") else v).clone() for n, v in flat.items()}


@pytest.mark.parametrize("stage", ["flow", "sla", "rcm"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(alone, tmp_path: Path, stage: str):
    config = settings(stage, tmp_path / "once")
    once = open_trainer(config, alone, quiet=True)
    once.run()
    halves = replace(config, out=str(tmp_path / "halves"))
    open_trainer(replace(halves, steps=3), alone, quiet=True).run()
    again = open_trainer(halves, alone, quiet=True)
    assert again.iteration == 3
    again.run()
    assert curve(tmp_path / "once") == curve(tmp_path / "halves")
    assert len(curve(tmp_path / "once")) == 4
    ours, theirs = whole(again), whole(once)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(name.startswith("net_ema.") for name in ours)


def test_training_learns(alone, tmp_path: Path):
    rate = {"lr": 1e-3, "warmup": 1}
    config = settings("flow", tmp_path, steps=12, batch=4, micro_batch=4, optim=rate)
    trainer = open_trainer(config, alone, quiet=True)
    batch = trainer.source.batch(0, 0)
    trainer.source.batch = lambda iteration, slot: batch
    trainer.run()
    losses = [loss for _, loss, *_ in curve(tmp_path)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_the_last_checkpoints_stay_and_are_named(alone, tmp_path: Path):
    config = settings("flow", tmp_path, steps=5, save_every=1, keep=2)
    report = open_trainer(config, alone, quiet=True).run()
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == [
        "iter_000000004", "iter_000000005", saving.LATEST,
    ]  # fmt: skip
    assert (folder / saving.LATEST).read_text().strip() == "iter_000000005"
    assert report["complete"] and report["checkpoint"].endswith("iter_000000005")


@pytest.mark.parametrize("steps", [1, 2])
def test_a_broken_gradient_changes_nothing_but_its_count(alone, tmp_path: Path, steps: int):
    config = settings("flow", tmp_path, steps=3, ema=0.0, save_every=0)
    trainer = open_trainer(config, alone, quiet=True)
    trainer.step(trainer.objective.phase(0))
    before = whole(trainer)
    for trainer.iteration in range(1, 1 + steps):
        norm = trainer.step(poisoned(trainer, trainer.iteration))
        assert math.isnan(norm)
    after = whole(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert trainer.broken == steps
    assert math.isfinite(trainer.step(trainer.objective.phase(2)))
    assert trainer.broken_in_row == 0
    assert any(not torch.equal(before[name], v) for name, v in whole(trainer).items())


def poisoned(trainer: Trainer, iteration: int) -> Phase:
    """The phase of an iteration whose loss is NaN."""
    phase = trainer.objective.phase(iteration)

    def closure(batch, generator) -> LossParts:
        return LossParts(phase.closures[0](batch, generator).loss * math.nan)

    return replace(phase, closures=(closure,))


def test_too_many_broken_steps_end_the_run_with_advice(alone, tmp_path: Path):
    config = settings("flow", tmp_path, steps=9, bad_steps=3, save_every=0)
    trainer = open_trainer(config, alone, quiet=True)
    plain = trainer.objective
    trainer.objective = type("Poisoned", (), {
        "networks": plain.networks, "phase": lambda self, i: poisoned_plain(plain, i),
    })()  # fmt: skip
    with pytest.raises(TurboDiffusionError, match="3 steps in a row") as error:
        trainer.run()
    assert error.value.code == "train-broken" and "optim.lr" in error.value.fix
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"] is None and last["broken"] == 2


def poisoned_plain(objective, iteration: int) -> Phase:
    phase = objective.phase(iteration)

    def closure(batch, generator) -> LossParts:
        return LossParts(phase.closures[0](batch, generator).loss * math.inf)

    return replace(phase, closures=(closure,))


def test_no_space_is_seen_before_writing(alone, tmp_path: Path, monkeypatch):
    config = settings("flow", tmp_path, steps=2, save_every=1)
    trainer = open_trainer(config, alone, quiet=True)
    trainer.step(trainer.objective.phase(0))
    trainer.iteration = 1
    trainer.save()
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda folder: usage)
    trainer.iteration = 2
    with pytest.raises(CapacityError, match="are needed and 1e-06 GB are free") as error:
        trainer.save()
    assert error.value.exit_code == 4
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["iter_000000001", saving.LATEST]


def test_a_disk_that_fills_up_leaves_the_old_checkpoint(alone, tmp_path: Path):
    """A limit on the size of files fails the write itself, in the middle of a shard."""
    config = settings("flow", tmp_path, steps=2, save_every=1)
    trainer = open_trainer(config, alone, quiet=True)
    trainer.step(trainer.objective.phase(0))
    trainer.iteration = 1
    trainer.save()
    trainer.step(trainer.objective.phase(1))
    trainer.iteration = 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(CapacityError, match="does not fit on the disk") as error:
            trainer.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.code == "train-disk-full" and "keep=1" in error.value.fix
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["iter_000000001", saving.LATEST]
    trainer.save()  # space again
    assert open_trainer(config, alone, quiet=True).iteration == 2


def test_a_killed_run_loses_at_most_one_interval(tmp_path: Path):
    config = settings("flow", tmp_path, steps=10_000, save_every=2)
    path = tmp_path / "given.json"
    path.write_text(json.dumps(config.as_json()))
    words = ["-m", "turbodiffusion", "train", "flow", "--config", str(path), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    folder, partial = tmp_path / "checkpoints", False
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline and not partial:
            # The worst moment: one checkpoint is there, the next is being written.
            names = [p.name for p in folder.glob("iter_*")] if folder.exists() else []
            partial = any(n.endswith(".partial") for n in names) and len(names) > 1
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert partial
    done = len(curve(tmp_path))
    with runs.alone() as ranks:
        again = open_trainer(config, ranks, quiet=True)
        assert again.iteration > 0 and done - again.iteration <= config.save_every
        assert len(curve(tmp_path)) == again.iteration  # later lines will be written again
        again.config = replace(config, steps=again.iteration + 2)
        again.run()
    assert not list(folder.glob("*.partial"))
