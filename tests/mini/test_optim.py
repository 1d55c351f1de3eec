"""The optimiser: torch's AdamW where torch can be asked, and what it adds to it."""

import copy
import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.mini import nano
from turbodiffusion.mini.optim import MasterOptimizer

STAGE = nano.vae_recipe(weight_decay=0.1, clip=0.5, ema=0.98)


def network(dtype=torch.float32):
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    return layers.to(dtype)


def gradients(step, scale=1.0):
    generator = torch.Generator().manual_seed(100 + step)
    return [scale * torch.randn(p.shape, generator=generator) for p in network().parameters()]


def give(module, values):
    for parameter, value in zip(module.parameters(), values, strict=True):
        parameter.grad = value.to(parameter.dtype)


def test_equals_torch_with_clipping():
    ours, theirs = network(), network()
    optim = MasterOptimizer(ours.named_parameters(), STAGE)
    weights = [p for p in theirs.parameters() if p.ndim > 1]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    reference = torch.optim.AdamW(
        [
            {"params": weights, "weight_decay": STAGE.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        betas=STAGE.betas,
    )
    for step in range(20):
        values = gradients(step, scale=0.01 if step % 3 else 4.0)  # below and above the clip
        lr = 1e-2 / (1 + step)
        give(ours, values)
        norm = optim.step(lr)
        give(theirs, values)
        wanted = nn.utils.clip_grad_norm_(theirs.parameters(), STAGE.clip)
        for group in reference.param_groups:
            group["lr"] = lr
        reference.step()
        assert norm.item() == pytest.approx(wanted.item(), rel=1e-5)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            # torch's clipping divides by norm + 1e-6
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for p in ours.parameters()), "gradients are consumed"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_gradient_changes_nothing(bad):
    module = network()
    optim = MasterOptimizer(module.named_parameters(), STAGE)
    give(module, gradients(0))
    optim.step(1e-2)
    before = copy.deepcopy(optim.state_dict())
    weights = [p.detach().clone() for p in module.parameters()]
    values = gradients(1)
    values[2][0] = bad
    give(module, values)
    assert not torch.isfinite(optim.step(1e-2))
    after = optim.state_dict()
    for name, value in before["master"].items():
        assert torch.equal(after["master"][name], value)
    assert after["adam"]["state"].keys() == before["adam"]["state"].keys()
    for key, state in before["adam"]["state"].items():
        for name, value in state.items():
            assert torch.equal(after["adam"]["state"][key][name], value), name
    assert all(torch.equal(p, w) for p, w in zip(module.parameters(), weights, strict=True))
    give(module, gradients(2))
    assert torch.isfinite(optim.step(1e-2))
    assert not torch.equal(next(module.parameters()), weights[0]), "training goes on after it"


def test_low_precision_weights_follow_their_masters():
    """Updates far below a bf16 step add up; 1 + 200·1e-4 is lost if the weight itself is bf16."""
    module = nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        module.weight.fill_(1.0)
    stage = nano.vae_recipe(weight_decay=0.0)
    optim = MasterOptimizer(module.named_parameters(), stage)
    for _ in range(200):
        module.weight.grad = -torch.ones_like(module.weight)
        optim.step(1e-4)
    assert optim.master[0].dtype == torch.float32
    assert optim.master[0].item() == pytest.approx(1.02, abs=1e-4)
    assert module.weight.dtype == torch.bfloat16
    assert torch.equal(module.weight, optim.master[0].bfloat16())


def test_moving_average():
    module = network()
    optim = MasterOptimizer(module.named_parameters(), STAGE)
    average = [p.detach().clone() for p in module.parameters()]
    for step in range(300):
        give(module, gradients(step))
        optim.step(1e-2)
        decay = min(STAGE.ema, (1 + step) / (10 + step))  # from 0.1 upwards
        for mean, value in zip(average, module.parameters(), strict=True):
            mean.mul_(decay).add_(value.detach(), alpha=1 - decay)
    assert (1 + 299) / (10 + 299) < STAGE.ema < (1 + 600) / (10 + 600)
    ours = optim.average()
    assert list(ours) == [name for name, _ in module.named_parameters()]
    for mean, got in zip(average, ours.values(), strict=True):
        torch.testing.assert_close(got, mean, rtol=1e-5, atol=1e-6)
    optim.restore_average()
    for mean, live in zip(ours.values(), module.parameters(), strict=True):
        assert torch.equal(mean, live)


def test_state_round_trip_is_exact(tmp_path):
    """Half of the steps, a file, another object, the other half: the same bits as without."""
    straight = network(torch.bfloat16)
    optim = MasterOptimizer(straight.named_parameters(), STAGE)
    for step in range(10):
        give(straight, gradients(step))
        optim.step(1e-2)
        if step == 4:
            torch.save(optim.state_dict(), tmp_path / "state")
    resumed = network(torch.bfloat16)
    second = MasterOptimizer(resumed.named_parameters(), STAGE)
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert second.steps == 5
    for step in range(5, 10):
        give(resumed, gradients(step))
        second.step(1e-2)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(optim.master + optim.ema, second.master + second.ema, strict=True):
        assert torch.equal(a, b)


def test_a_parameter_without_gradient_counts_as_zero():
    module, twin = network(), network()
    optims = [MasterOptimizer(m.named_parameters(), STAGE) for m in (module, twin)]
    for step in range(3):
        values = gradients(step)
        give(module, values)
        give(twin, values)
        if step == 1:
            module[2].weight.grad = None
            twin[2].weight.grad.zero_()
        for optim in optims:
            optim.step(1e-2)
    assert all(
        torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True)
    )


PROCESS = """
import os, sys, torch, torch.distributed as dist
from tests.mini import test_optim as t
from turbodiffusion.mini.optim import MasterOptimizer
rank = int(os.environ["RANK"])
dist.init_process_group("gloo")
module = t.network()
optim = MasterOptimizer(module.named_parameters(), t.STAGE)
for step in range(3):
    t.give(module, t.gradients(10 * step + rank))
    optim.step(1e-2)
torch.save(module.state_dict(), sys.argv[1] + str(rank))
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_average_their_gradients(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "rank")]
    both = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        assert [process.wait(120) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
    single = network()
    optim = MasterOptimizer(single.named_parameters(), STAGE)
    for step in range(3):
        pairs = zip(gradients(10 * step), gradients(10 * step + 1), strict=True)
        give(single, [(a + b) / 2 for a, b in pairs])
        optim.step(1e-2)
    first, second = (torch.load(tmp_path / f"rank{rank}") for rank in range(2))
    for name, value in single.state_dict().items():
        assert torch.equal(first[name], second[name]), "both processes hold the same weights"
        torch.testing.assert_close(first[name], value, rtol=1e-6, atol=1e-7)
