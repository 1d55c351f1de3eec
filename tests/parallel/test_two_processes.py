"""Several processes compute what one does: weights, loss, gradients, for every stage and layout."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel.launch import launch
from tests.parallel.two import ITERATIONS, settings_for
from tests.train.runs import alone, curve
from turbodiffusion.train.run import open_trainer

CASES = [f"{stage}:{way}" for stage in ITERATIONS for way in ("fsdp", "ulysses")]
CASES += ["flow:replicas"]
FOUR = ["flow:hsdp"]
"""Two replicas of two shards."""
SAME = ("dcm", "align")
"""Networks and optimisers of these stages are those of ``rcm`` and ``sla``."""
MOVED = [stage for stage in ITERATIONS if stage not in SAME]


def names(cases: list[str]) -> list[str]:
    return [f"{c.replace(':', '-')}-{i}" for c in cases for i in ITERATIONS[c.partition(":")[0]]]


def open_run(folder: Path, stage: str, name: str):
    """A trainer of one process in the folder of a moved run."""
    config = replace(settings_for(stage, folder / stage / name, "fsdp"), keep=9)
    return alone(), config


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A whole run of every stage by one process; ``one-two`` is its first half."""
    made = tmp_path_factory.mktemp("two")
    for stage in MOVED:
        group, config = open_run(made, stage, "one")
        with group as ranks:
            open_trainer(config, ranks, quiet=True).run()
        shutil.copytree(made / stage / "one", made / stage / "one-two")
        shutil.rmtree(made / stage / "one-two" / "checkpoints" / "iter_000000004")
    return made


@pytest.fixture(scope="module")
def measured(folder: Path) -> dict[str, dict[str, Any]]:
    """All cases in one pair of processes: starting them takes longer than the cases."""
    moves = [f"{stage}:move" for stage in MOVED]
    return by_name(
        launch(2, "tests.parallel.two", str(folder), *CASES, *moves, "damage", "overflow")
    )


@pytest.fixture(scope="module")
def measured_by_four(tmp_path_factory) -> dict[str, dict[str, Any]]:
    return by_name(launch(4, "tests.parallel.two", str(tmp_path_factory.mktemp("four")), *FOUR))


def by_name(said: str) -> dict[str, dict[str, Any]]:
    return {line["case"]: line for line in map(json.loads, said.splitlines())}


@pytest.mark.parametrize("name", names(CASES))
def test_two_compute_what_one_does(measured, name: str):
    check(measured[name])


@pytest.mark.parametrize("name", names(FOUR))
def test_four_compute_what_one_does(measured_by_four, name: str):
    check(measured_by_four[name])


def check(found: dict[str, Any]) -> None:
    assert found["equal"]  # filled shard by shard, they start from the same bits
    assert found["tensors"] > 50 and found["norm"] > 0
    assert found["loss"] < 1e-5
    assert found["gradient"] < 1e-5


@pytest.mark.parametrize("name", ["one-two", "two-one"])
@pytest.mark.parametrize("stage", MOVED)
def test_checkpoints_move_between_numbers_of_processes(folder: Path, measured, stage: str, name):
    if name == "two-one":
        group, config = open_run(folder, stage, name)
        with group as ranks:
            again = open_trainer(config, ranks, quiet=True)
            assert again.iteration == 2
            again.run()
    moved, one = (curve(folder / stage / n, ("loss",)) for n in (name, "one"))
    assert [step for step, _ in moved] == [1, 2, 3, 4]
    torch.testing.assert_close(torch.tensor(moved), torch.tensor(one), rtol=1e-5, atol=0)


def test_both_processes_are_told_of_a_damaged_shard_of_one(measured):
    assert measured["damaged"]["told"] == 1.0


def test_both_processes_are_told_of_a_full_disk_of_one(measured):
    assert measured["overflow"]["told"] == 1.0
    assert measured["overflow"]["left"] == ["iter_000000001", "latest_checkpoint.txt"]
