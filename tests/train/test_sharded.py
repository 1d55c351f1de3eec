"""Batches from shards, by position."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.train.test_shards import values, write
from turbodiffusion.errors import UsageError
from turbodiffusion.train.sharded import NEGATIVE, Sharded


def test_a_step_is_the_same_in_any_parts_and_after_a_restart(tmp_path: Path) -> None:
    write(tmp_path, 0), write(tmp_path, 1)
    torch.save(torch.ones(6, 8).bfloat16(), tmp_path / NEGATIVE)

    def step(number: int, part: int) -> torch.Tensor:
        source = Sharded(tmp_path, 3, (4, 2, 2, 2), batch=4, micro_batch=part)
        passes = [source.batch(number, slot) for slot in range(4 // part)]
        assert passes[0].negative().shape == (part, 6, 8)
        return torch.cat([one.latents_BCTHW for one in passes])

    for number in range(3):
        assert torch.equal(step(number, 4), step(number, 1))
    seen = {tuple(x.flatten().tolist()) for n in range(2) for x in step(n, 2)}
    assert seen == {tuple(values(n)[0][:, :2].float().flatten().tolist()) for n in range(8)}


def test_samples_of_another_size(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UsageError) as caught:
        Sharded(tmp_path, 0, (4, 3, 9, 9), batch=1, micro_batch=1).batch(0, 0)
    assert caught.value.code == "shards-size"
