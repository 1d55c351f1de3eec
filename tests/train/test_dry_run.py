"""What is said of runs that do not take place, against counting by hand and by torch."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from turbodiffusion.cli.main import main
from turbodiffusion.models.cards import DIT_1_3B, DIT_14B, Attention, card
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.train import footprint
from turbodiffusion.train.dry_run import dry_run
from turbodiffusion.train.footprint import block_footprint
from turbodiffusion.train.stages import settings_of
from turbodiffusion.train.work import forward_operations


def test_operations_are_those_that_torch_counts():
    config = card("micro-teacher").dit
    with torch.device("meta"):
        network = WanDiT(config)
        x = torch.empty(1, config.in_dim, 3, 8, 8)
        with FlopCounterMode(display=False) as counter:
            network(x, torch.empty(1, 1), torch.empty(1, config.text_len, config.text_dim))
    counted = counter.get_total_flops()
    assert forward_operations(config, 48, Attention("dense")) == pytest.approx(counted, rel=1e-6)


def test_sparse_attention_counts_its_kept_keys():
    config = card("TurboWan2.1-T2V-1.3B-480P").dit
    dense = forward_operations(config, 32760, Attention("dense"))
    sparse = forward_operations(config, 32760, Attention("sla", topk=0.1))
    quadratic = 2 * 2 * config.num_layers * 32760**2 * config.dim
    assert dense - sparse == pytest.approx(0.9 * quadratic, rel=0.01)


@pytest.mark.parametrize("kind", ["dense", "sla"])
def test_recomputation_keeps_less(kind):
    attention = Attention(kind, 0.25, 64, 64)
    unit = 512 * DIT_1_3B.dim * 2
    none, matmul, block = (
        block_footprint(
            DIT_1_3B, attention, samples=1, tokens=512, dtype=torch.bfloat16, mode=mode
        ) for mode in ("none", "matmul", "block")
    )  # fmt: skip
    # Its output, the next block's input, and of sparse attention the indices of the kept blocks.
    indices = DIT_1_3B.num_heads * 8 * 2 * 8 if kind == "sla" else 0
    assert unit <= block.kept <= unit + indices
    assert 8 * unit < matmul.kept < none.kept / 2
    assert none.kept < none.peak


def test_long_videos_go_on_from_two_counts():
    dit, attention = card("micro-teacher").dit, Attention("sla", 0.1, 64, 64)
    line = block_footprint(
        dit, attention, samples=1, tokens=5120, dtype=torch.bfloat16, mode="matmul"
    )
    counted = footprint._count(dit, attention, 1, 5120, torch.bfloat16, "matmul")
    assert line.kept == pytest.approx(counted.kept, rel=0.01)
    # Buffers of a fixed size, which show in networks as small as this one, make it a bound.
    assert counted.peak <= line.peak < 1.2 * counted.peak


def test_a_large_run_is_laid_out_for_every_number_of_gpus():
    found = dry_run(settings_of("rcm", "14B"), (8, 32, 64))
    parameters = 14_288_491_584  # of the released network
    with torch.device("meta"):
        shapes = [p.shape for p in WanDiT(DIT_14B).parameters()]
    # The first process holds the longest part of every tensor, the whole of those with one row.
    first = {n: sum(-(-s[0] // n) * s[1:].numel() for s in shapes) for n in (8, 32)}
    assert [run["mesh"] for run in found["runs"]] == [
        {"replicate": 1, "shard": 8, "data": 1, "context": 8},
        {"replicate": 1, "shard": 32, "data": 4, "context": 8},
        {"replicate": 2, "shard": 32, "data": 8, "context": 8},
    ]
    for run, shards in zip(found["runs"], (8, 32, 32), strict=True):
        assert run["tokens_per_step"] == 64 * 32760
        student, teacher = run["networks"]["student"], run["networks"]["teacher"]
        assert student["trained"] and not teacher["trained"]
        assert student["parameters"] == teacher["parameters"] == parameters
        assert student["local"] == first[shards]
        memory = run["memory"]
        # Two learning networks in float32 and a frozen one in bf16; moments of two; one average.
        assert memory["weights"] == 10 * first[shards]
        assert memory["moments"] == 16 * first[shards]
        assert memory["average"] == memory["gradients"]
        assert run["memory_total"] == sum(memory.values())
        groups = run["groups"]
        assert sum(g["elements"] for g in groups.values()) == parameters
        assert groups["vectors"]["weight_decay"] == 0
    kinds = [list(run["networks"]["student"]["shardings"]) for run in found["runs"]]
    assert kinds == [["float32 S(0)"], ["float32 S(0)"], ["float32 R,S(0)"]]


def test_the_command_prints_it(capsys):
    words = ["train", "rcm", "--preset", "micro", "--dry-run", "--set", "parallel.shard=4",
             "--set", "micro_batch=3", "--set", "batch=6", "--gpus"]  # fmt: skip
    assert main([*words, "4,8"]) == 0
    text = capsys.readouterr().out
    table = {line[:24].strip(): line[24:].split() for line in text.splitlines()}
    assert table["replicate × shard"] == ["1", "×", "4", "2", "×", "4"]
    assert table["student"] == ["float32", "S(0)", "float32", "R,S(0)"]
    assert table["samples a step"] == ["12", "24"]  # three for each of the processes
    assert "8 GPUs cannot share 6 samples; counted with 24." in text
    assert len(table["GiB a GPU"]) == 2
    assert main([*words, "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["gpus"] == 8
    assert main([*words, "6"]) == 2
    assert "shard 4 does not divide the 6" in capsys.readouterr().err


def test_one_gpu_casts_whole_networks_and_derives_a_copy():
    config = settings_of("rcm", "micro")
    (run,) = dry_run(config, (1,))["runs"]
    memory, size = run["memory"], run["networks"]["student"]["parameters"]
    assert memory["weights"] == 10 * size and memory["gathered"] == 2 * size
    assert memory["derivative"] == 4 * size
