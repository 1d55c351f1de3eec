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
from tests.train.runs import curve, local, settings
from turbodiffusion.errors import CapacityError, TurboDiffusionError
from turbodiffusion.train import checkpoints as saving
from turbodiffusion.train.config import TrainConfig
from turbodiffusion.train.losses import LossParts, Phase
from turbodiffusion.train.run import open_trainer
from turbodiffusion.train.stopping import Stopping
from turbodiffusion.train.trainer import Trainer


def whole(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of everything that a checkpoint holds."""
    tensors = trainer._tensors()
    flat = dict(tensors["model"])
    for role, state in tensors["optim"].items():
        flat |= {f"{role}.{name}": v for name, v in state.items() if isinstance(v, torch.Tensor)}
    return {n: local(v).clone() for n, v in flat.items()}


@pytest.mark.parametrize(
    ("stage", "activations"),
    [("flow", "none"), ("flow", "block"), ("sla", "none"), ("sla-flow", "none"), ("rcm", "none")],
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    alone, tmp_path: Path, stage: str, activations: str
):
    config = settings(stage, tmp_path / "once", parallel={"activations": activations})
    once = open_trainer(config, alone, quiet=True)
    once.run()
    halves = replace(config, out=str(tmp_path / "halves"))
    first = open_trainer(halves, alone, quiet=True)
    first.run(stop=lambda: first.iteration == 3)
    again = open_trainer(halves, alone, quiet=True)
    assert again.iteration == 3
    again.run()
    assert curve(tmp_path / "once") == curve(tmp_path / "halves")
    assert len(curve(tmp_path / "once")) == 4
    ours, theirs = whole(again), whole(once)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(name.startswith("net_ema.") for name in ours)


@pytest.mark.parametrize("activations", ["none", "block"])
def test_updates_below_the_computing_precision_are_kept(alone, tmp_path: Path, activations: str):
    """Masters are float32: what a bfloat16 weight would round away adds up."""
    config = settings(
        "flow", tmp_path, dtype="bfloat16", optim={"lr": 1e-6, "warmup": 0, "weight_decay": 0},
        parallel={"activations": activations},
    )  # fmt: skip
    trainer = open_trainer(config, alone, quiet=True)
    weight = dict(trainer.networks["student"].named_parameters())["blocks.0.ffn.0.weight"]
    before = local(weight.detach()).clone()
    trainer.step(trainer.objective.phase(0))
    after = local(weight.detach())
    assert after.dtype is torch.float32
    assert (after != before).float().mean() > 0.9
    assert (after.bfloat16() != before.bfloat16()).float().mean() < 0.1


def test_a_sparse_student_is_distilled_without_the_consistency_loss(alone, tmp_path: Path):
    loss = {"topk": 0.34, "every": 2, "consistency": {"scale": 0.0, "warmup": 0}}
    config = settings("rcm", tmp_path, steps=3, optim={"lr": 1e-3, "warmup": 0}, loss=loss)
    trainer = open_trainer(config, alone, quiet=True)
    student = trainer.networks["student"]
    names = [n for n, _ in student.named_parameters() if n.endswith("proj_l.weight")]
    assert len(names) == 4 and not any(student.get_parameter(n).any() for n in names)
    trainer.run()
    assert all(student.get_parameter(n).any() for n in names), "the linear branch has learnt"
    logged = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert all("scm" not in line for line in logged) and "dmd" in logged[-1]


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


class Poisoned:
    """An objective whose losses are not finite in some iterations."""

    def __init__(self, plain, iterations) -> None:
        self.plain, self.networks, self.iterations = plain, plain.networks, iterations

    def phase(self, iteration: int) -> Phase:
        phase = self.plain.phase(iteration)
        if iteration not in self.iterations:
            return phase

        def closure(batch, generator) -> LossParts:
            return LossParts(phase.closures[0](batch, generator).loss * math.inf)

        return replace(phase, closures=(closure,))


def test_too_many_broken_steps_end_the_run_with_advice(alone, tmp_path: Path):
    config = settings("flow", tmp_path, steps=9, bad_steps=3, save_every=0)
    trainer = open_trainer(config, alone, quiet=True)
    trainer.objective = Poisoned(trainer.objective, range(9))
    with pytest.raises(TurboDiffusionError, match="3 steps in a row") as error:
        trainer.run()
    assert error.value.code == "train-broken" and "optim.lr" in error.value.fix
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"] is None and last["broken"] == 2 and last["unstable"] == 1


def test_a_run_that_broke_loses_nothing(alone, tmp_path: Path):
    """It goes on from before the first broken step, and becomes the run that never broke."""
    config = settings("flow", tmp_path / "once", steps=6, save_every=1, keep=2)
    once = open_trainer(config, alone, quiet=True)
    once.run()
    config = replace(config, out=str(tmp_path / "broke"), bad_steps=3)
    broke = open_trainer(config, alone, quiet=True)
    broke.objective = Poisoned(broke.objective, range(2, 6))
    with pytest.raises(TurboDiffusionError, match="the last is step 4"):
        broke.run()
    again = open_trainer(config, alone, quiet=True)
    assert (again.iteration, again.broken) == (2, 0)
    again.run()
    assert curve(tmp_path / "broke") == curve(tmp_path / "once")
    ours, theirs = whole(again), whole(once)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_that_was_due_is_written_after_the_broken_steps(alone, tmp_path: Path):
    config = settings("flow", tmp_path, steps=5, save_every=2, keep=9)
    trainer = open_trainer(config, alone, quiet=True)
    trainer.objective = Poisoned(trainer.objective, (1, 2))
    saved = []
    save = trainer.save
    trainer.save = lambda: saved.append(trainer.iteration) or save()
    report = trainer.run()
    assert saved == [4, 5] and report["broken"] == 2  # due at 2; then 4, and the end


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


def started(config: TrainConfig) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    path = Path(config.out) / "given.json"
    path.write_text(json.dumps(config.as_json()))
    words = ["-m", "turbodiffusion", "train", "flow", "--config", str(path), "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def test_a_killed_run_loses_at_most_one_interval(tmp_path: Path):
    config = settings("flow", tmp_path, steps=10_000, save_every=2)
    process = started(config)
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


def test_an_interrupted_run_ends_its_step_and_saves(tmp_path: Path):
    config = settings("flow", tmp_path, steps=10_000, save_every=0)
    process = started(config)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "metrics.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Stopping after this step" in errors and "Traceback" not in errors
    done = len(curve(tmp_path))
    with runs.alone() as ranks:
        assert open_trainer(config, ranks, quiet=True).iteration == done > 0


@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_the_first_signal_is_noted_and_the_second_acts(number: int, ends: type[BaseException]):
    seen = []
    before = signal.signal(number, lambda *_: seen.append(number))
    try:
        with Stopping(quiet=True) as stopping:
            assert not stopping.asked()
            signal.raise_signal(number)
            assert stopping.asked() and not seen
            signal.raise_signal(number)
            assert seen == [number]
        with pytest.raises(ends) as error:
            stopping.end()
        assert ends is KeyboardInterrupt or error.value.code == 143
    finally:
        signal.signal(number, before)
