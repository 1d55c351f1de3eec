"""Checkpoints that are damaged, foreign or malicious."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.train import runs
from tests.train.runs import settings
from turbodiffusion.errors import TurboDiffusionError, WeightsError
from turbodiffusion.train import checkpoints as saving
from turbodiffusion.train.run import open_trainer
from turbodiffusion.weights.distributed import open_distributed
from turbodiffusion.weights.sharded_reader import SafePlanner, SafeReader

MARK = "a file that only a program could have made"


class Program:
    """Pickled, it is a call: unpickled, it writes ``mark``."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.write_text, (self.mark, MARK))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run with one checkpoint; tests work on copies."""
    out = tmp_path_factory.mktemp("trained")
    with runs.alone() as ranks:
        open_trainer(settings("flow", out, steps=1), ranks, quiet=True).run()
    return out


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "iter_000000001"


@pytest.mark.parametrize("part", ["model", "optim"])
def test_a_program_in_the_index_is_refused_and_not_run(alone, copied: Path, tmp_path: Path, part):
    mark = tmp_path / "mark"
    index = checkpoint(copied) / part / ".metadata"
    index.write_bytes(pickle.dumps(Program(mark)))
    pickle.loads(index.read_bytes())
    assert mark.read_text() == MARK  # the attack works where nobody looks
    mark.unlink()
    with pytest.raises(WeightsError, match=r"it asks for pathlib\S*\.Path\.write_text") as error:
        open_trainer(settings("flow", copied), alone, quiet=True)
    assert error.value.code == "train-checkpoint"
    if part == "model":
        with pytest.raises(WeightsError, match="write_text"):
            open_distributed(index.parent)
    assert not mark.exists()


def test_a_program_in_place_of_an_index_entry_is_refused(copied: Path, tmp_path: Path):
    index = checkpoint(copied) / "model" / ".metadata"
    metadata = SafeReader(index.parent).read_metadata()
    metadata.planner_data = Program(tmp_path / "mark")
    index.write_bytes(pickle.dumps(metadata))
    with pytest.raises(pickle.UnpicklingError, match="write_text"):
        SafeReader(index.parent).read_metadata()
    assert not (tmp_path / "mark").exists()


def test_a_program_among_the_values_is_refused_and_not_run(alone, tmp_path: Path):
    mark = tmp_path / "mark"
    dcp.save({"rate": Program(mark), "x": torch.ones(2)}, checkpoint_id=tmp_path / "saved")
    state = {"rate": 0.0, "x": torch.zeros(2)}
    reader, planner = SafeReader(tmp_path / "saved"), SafePlanner()
    with pytest.raises(BaseException, match="Weights only load failed"):
        dcp.load(state, storage_reader=reader, planner=planner)
    assert not mark.exists()


def test_plain_values_are_what_torch_reads(alone, tmp_path: Path):
    state = {"rate": 0.5, "betas": (0.0, 0.9), "flags": {"on": True, "none": None}, "name": "x",
             "x": torch.arange(3.0)}  # fmt: skip
    dcp.save(state, checkpoint_id=tmp_path / "saved")
    ours, theirs = ({"rate": 0, "betas": (), "flags": {"on": 0, "none": 1}, "name": "",
                     "x": torch.zeros(3)} for _ in range(2))  # fmt: skip
    dcp.load(ours, storage_reader=SafeReader(tmp_path / "saved"), planner=SafePlanner())
    dcp.load(theirs, checkpoint_id=tmp_path / "saved")
    assert torch.equal(ours.pop("x"), theirs.pop("x"))
    assert ours == theirs and ours["rate"] == 0.5 and ours["flags"] == {"on": True, "none": None}


def test_something_else_than_an_index_is_refused(tmp_path: Path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(pickle.UnpicklingError, match="holds no index"):
        SafeReader(tmp_path).read_metadata()


@pytest.mark.parametrize("damage", ["short", "noise", "gone", "no index"])
def test_a_damaged_checkpoint_is_an_error_that_names_it(alone, copied: Path, damage: str):
    shard = next((checkpoint(copied) / "model").glob("*.distcp"))
    if damage == "short":
        shard.write_bytes(shard.read_bytes()[:1000])
    elif damage == "noise":
        shard.write_bytes(bytes(shard.stat().st_size))
    elif damage == "gone":
        shard.unlink()
    else:
        (shard.parent / ".metadata").unlink()
    with pytest.raises(WeightsError, match="iter_000000001 cannot be continued from") as error:
        open_trainer(settings("flow", copied), alone, quiet=True)
    assert "the one before it" in error.value.fix


def test_a_checkpoint_of_another_network_is_refused(alone, copied: Path):
    with pytest.raises(WeightsError, match="cannot be continued from") as error:
        open_trainer(settings("sla", copied), alone, quiet=True)
    assert "--out" in error.value.fix


def test_a_place_that_cannot_be_written_is_named(alone, tmp_path: Path):
    config = settings("flow", tmp_path, steps=1)
    trainer = open_trainer(config, alone, quiet=True)
    (tmp_path / "checkpoints").write_text("no folder")
    with pytest.raises(TurboDiffusionError, match="could not be written to") as error:
        trainer.run()
    assert error.value.code == "train-save"


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_no_half_one(
    alone, copied: Path, monkeypatch
):
    trainer = open_trainer(settings("flow", copied, steps=3, save_every=1, keep=1), alone,
                           quiet=True)  # fmt: skip

    def killed(path, **kwargs):
        next(Path(path).rglob("*.distcp")).unlink()
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(saving.shutil, "rmtree", killed)
        with pytest.raises(SystemExit):
            trainer.run()
    folder = copied / "checkpoints"
    assert sorted(p.name for p in folder.glob("iter_*")) == [
        "iter_000000001.partial", "iter_000000002",
    ]  # fmt: skip
    again = open_trainer(trainer.config, alone, quiet=True)
    assert again.iteration == 2
    again.run()
    assert [p.name for p in folder.glob("iter_*")] == ["iter_000000003"]
