"""Two processes compute what one does: loss and gradients, for every stage and layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.parallel.launch import launch
from tests.parallel.two import ITERATIONS
from tests.train.runs import alone, curve, settings
from turbodiffusion.train.run import open_trainer

CASES = [(stage, way) for stage in ITERATIONS for way in ("fsdp", "ulysses")] + [("flow", "hsdp")]
NAMES = [f"{stage}-{way}-{i}" for stage, way in CASES for i in ITERATIONS[stage]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs of the sparse stage: ``one``, and the first half of ``one-two``, by one process."""
    made = tmp_path_factory.mktemp("two")
    with alone() as ranks:
        open_trainer(settings("sla", made / "one", steps=4), ranks, quiet=True).run()
        open_trainer(settings("sla", made / "one-two", steps=2), ranks, quiet=True).run()
    return made


@pytest.fixture(scope="module")
def measured(folder: Path) -> dict[str, dict[str, float]]:
    """All cases in one pair of processes: starting them takes longer than the cases."""
    said = launch(2, "tests.parallel.two", str(folder), *(":".join(case) for case in CASES))
    return {line["case"]: line for line in map(json.loads, said.splitlines())}


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_are_those_of_one_process(measured, name: str):
    found = measured[name]
    assert found["tensors"] > 50 and found["norm"] > 0
    assert found["loss"] < 1e-5
    assert found["gradient"] < 1e-5


@pytest.mark.parametrize("name", ["one-two", "two-one"])
def test_checkpoints_move_between_numbers_of_processes(folder: Path, measured, name: str):
    if name == "two-one":
        with alone() as ranks:
            again = open_trainer(settings("sla", folder / name, steps=4), ranks, quiet=True)
            assert again.iteration == 2
            again.run()
    moved, one = curve(folder / name, ("loss",)), curve(folder / "one", ("loss",))
    assert [step for step, _ in moved] == [1, 2, 3, 4]
    torch.testing.assert_close(torch.tensor(moved), torch.tensor(one), rtol=1e-5, atol=0)
