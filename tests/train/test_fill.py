"""Networks filled shard by shard hold what a whole one holds, to the bit."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.train.runs import local, settings
from turbodiffusion.errors import WeightsError
from turbodiffusion.models.cards import card
from turbodiffusion.parallel import ranks
from turbodiffusion.train import fill as filling
from turbodiffusion.train.run import build_networks, open_trainer
from turbodiffusion.train.stages import build_network
from turbodiffusion.weights.find import find
from turbodiffusion.weights.quantize import Quantized
from turbodiffusion.weights.stream import Converted, FileTensors, open_network, save

CARD = card("micro-teacher")


@contextmanager
def as_one_of(world: int, rank: int, shard: int):
    """A process among others that do not exist: nothing is exchanged while filling."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield ranks.layout(torch.device("cpu"), shard=shard)
    finally:
        ranks.leave()


@pytest.mark.parametrize("init", ["", "micro-teacher"])
@pytest.mark.parametrize(("world", "rank", "shard"), [(1, 0, 1), (3, 0, 3), (3, 2, 3), (4, 3, 2)])
def test_shards_are_rows_of_the_whole(tmp_path: Path, init: str, world: int, rank: int, shard: int):
    config = settings("sla", tmp_path, init=init, dtype="bfloat16")
    with as_one_of(world, rank, shard) as place:
        networks = build_networks(config, CARD, place)
        for role in ("student", "teacher"):
            whole = dict(build_network(config, CARD, role).named_parameters())
            held = total = 0
            for name, parameter in getattr(networks, role).named_parameters():
                own, start, stop = filling.own_rows(parameter.detach())
                assert torch.equal(own, whole[name].detach()[start:stop].to(own.dtype)), name
                held, total = held + own.numel(), total + parameter.numel()
            assert total == sum(p.numel() for p in whole.values())
            assert held <= total / shard + sum(p[0].numel() for p in whole.values())
        assert own.dtype is torch.bfloat16  # the frozen teacher's


def test_only_own_rows_are_read(tmp_path: Path, monkeypatch):
    read = []
    elements = FileTensors.elements
    monkeypatch.setattr(
        FileTensors, "elements",
        lambda self, name, a, b: read.append(b - a) or elements(self, name, a, b),
    )  # fmt: skip
    with as_one_of(4, 1, 4) as place:
        build_networks(settings("flow", tmp_path), CARD, place)
    total = sum(p.numel() for p in build_network(settings("flow", tmp_path, init=""), CARD,
                                                 "student").parameters())  # fmt: skip
    assert 0 < sum(read) <= 0.26 * total


def test_the_projection_starts_at_zero_or_as_it_was(alone, tmp_path: Path):
    name = "blocks.0.self_attn.attn_op.local_attn.proj_l.weight"
    trainer = open_trainer(settings("sla", tmp_path / "a", steps=1), alone, quiet=True)
    student = dict(trainer.networks["student"].named_parameters())
    assert not local(student[name]).any()
    with torch.no_grad():
        local(student[name]).fill_(0.5)
    local(trainer.average.values[name]).fill_(0.25)
    trainer.iteration = 1
    trainer.save()
    config = settings("sla", tmp_path / "b", init=str(tmp_path / "a"))  # of a run: its average
    again = build_network(config, CARD, "student")
    assert (dict(again.named_parameters())[name] == 0.25).all()
    dense = build_network(config, CARD, "teacher")
    assert not any("proj_l" in name for name, _ in dense.named_parameters())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path):
    mini = find("mini-teacher", "dit").dit[""]
    with pytest.raises(WeightsError, match="micro-teacher"):
        build_network(settings("flow", tmp_path, init=str(mini)), CARD, "student")
    int8 = tmp_path / "int8.safetensors"
    save(Quantized(Converted(open_network(find("micro-teacher", "dit").dit[""]))), int8)
    with pytest.raises(WeightsError, match="int8") as error:
        build_network(settings("flow", tmp_path, init=str(int8)), CARD, "student")
    assert error.value.code == "train-init-quantized"
