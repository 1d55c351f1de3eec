"""Blocks that pass through a device: on the CPU by watching where the weights are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from turbodiffusion.memory.offload import Residency
from turbodiffusion.memory.stream import BlockStream, tensors
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.weights.find import find
from turbodiffusion.weights.load import load_dit, load_text_encoder


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


def places(net: Net) -> list[int]:
    return [block.weight.data_ptr() for block in net.blocks]


@torch.no_grad()
def test_only_the_block_in_use_and_the_next_are_copies() -> None:
    net, x = Net(), torch.randn(2, 4)
    expected, home = net(x), places(net)
    stream = BlockStream(net.blocks, torch.device("cpu"), stay=2)
    away: list[list[int]] = []
    for block in net.blocks:
        block.register_forward_hook(
            lambda *_: away.append([i for i, p in enumerate(places(net)) if p != home[i]])
        )
    stream.open()
    for _ in range(2):
        assert torch.equal(net(x), expected)
    assert away == [[], [], [2], [3], [4]] * 2
    assert places(net) == home and len(stream._coming) == 1
    stream.close()
    assert torch.equal(net(x), expected) and places(net) == home
    assert not any(b._forward_pre_hooks for b in net.blocks)


def test_residency_moves_the_rest_and_puts_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Residency, "_is_here", lambda self, module: False)
    net, other = Net(), nn.Linear(2, 2)
    residency = Residency(torch.device("cpu"), swap=True)
    for module in (net, other):
        residency.register(module)
    residency.stream(net, net.blocks, 3)
    home = [t.data_ptr() for t in tensors(net)]
    residency.use(net)
    assert residency.streams(net) and residency.staying(net) == 3
    residency.use(other)
    assert [t.data_ptr() for t in tensors(net)] == home
    assert not any(b._forward_hooks for b in net.blocks)
    residency.use(net)
    residency.forget(net)
    assert not residency.streams(net) and not any(b._forward_hooks for b in net.blocks)


@pytest.fixture(scope="module")
def networks():
    files = find("micro")
    dit: WanDiT = load_dit(next(iter(files.dit.values())), files.card, dtype=torch.float32)
    return dit, load_text_encoder(files.text_encoder, files.card.text), files.card


@torch.no_grad()
def test_real_networks_give_the_same_values(networks) -> None:
    dit, text, card = networks
    ids = torch.randint(2, 300, (1, card.text.text_len))
    mask = torch.ones_like(ids)
    x = torch.randn(1, *card.latent_shape(5, 32, 32))
    t = torch.full((1, 1), 500.0)
    context = text.encode(ids, mask)
    velocity = dit(x, t, context)
    residency = Residency(torch.device("cpu"), swap=True)
    for module, blocks in ((text, text.layers), (dit, dit.blocks)):
        residency.register(module)
        residency.stream(module, blocks, 1)
        residency.use(module)
    residency.use(text)
    streamed = text.encode(ids, mask)
    residency.use(dit)
    assert torch.equal(streamed, context) and torch.equal(dit(x, t, streamed), velocity)
    for module in (text, dit):
        residency.forget(module)


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_only_a_few_blocks_are_there(tmp_path: Path) -> None:
    device = torch.device("cuda:0")
    blocks = [nn.Linear(2048, 2048, bias=False).requires_grad_(False) for _ in range(12)]
    net = nn.Sequential(*blocks)
    x = torch.randn(8, 2048)
    expected = net.to(device)(x.to(device)).cpu()
    net.to("cpu")
    torch.cuda.empty_cache()
    residency = Residency(device, swap=True)
    residency.register(net)
    residency.stream(net, blocks, 2)
    base = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    residency.use(net)
    for _ in range(3):
        torch.testing.assert_close(net(x.to(device)).cpu(), expected)
    peak = (torch.cuda.max_memory_allocated(device) - base) / (4 * 2048 * 2048)
    assert peak < 2 + 2 + 1.5  # those that stay, two passing, and allocator lag of one
    assert not blocks[-1].weight.is_cuda and blocks[0].weight.is_cuda
