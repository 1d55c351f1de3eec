"""Moving modules in and out: bookkeeping on the CPU, the real thing where there is a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from turbodiffusion.memory.offload import Residency, module_bytes


class Remote(nn.Linear):
    """Stands on another device; ``to`` copies its tensors as a move would."""

    moves = 0

    def to(self, *_, **__):
        self.moves += 1
        for tensor in self.parameters():
            tensor.data = tensor.data.clone()
        return self


def remote_residency(monkeypatch, swap) -> tuple[Residency, list[Remote]]:
    monkeypatch.setattr(Residency, "_is_here", lambda self, module: False)
    residency = Residency(torch.device("cpu"), swap)
    modules = [Remote(4, 4) for _ in range(3)]
    for module in modules:
        residency.register(module)
    return residency, modules


def test_without_swapping_each_moves_once(monkeypatch):
    residency, modules = remote_residency(monkeypatch, swap=False)
    for module in (*modules, *modules):
        residency.use(module)
    assert [m.moves for m in modules] == [1, 1, 1]


def test_swapping_puts_the_host_tensors_back(monkeypatch):
    residency, (a, b, _) = remote_residency(monkeypatch, swap=True)
    host = a.weight.data_ptr()
    residency.use(a)
    assert a.weight.data_ptr() != host
    residency.use(b)
    assert a.weight.data_ptr() == host and a.moves == 1  # dropped, not copied back
    residency.use(a)
    assert a.moves == 2 and b.weight.data_ptr() != a.weight.data_ptr()


def test_forgotten_modules_are_left_alone(monkeypatch):
    residency, (a, b, _) = remote_residency(monkeypatch, swap=True)
    residency.use(a)
    moved = a.weight.data_ptr()
    residency.forget(a)
    residency.use(b)
    assert a.weight.data_ptr() == moved


def test_on_the_cpu_nothing_moves():
    residency = Residency(torch.device("cpu"))
    module = Remote(2, 2)
    residency.register(module)
    residency.use(module)
    assert module.moves == 0


def test_module_bytes():
    module = nn.Linear(3, 2).bfloat16()
    module.register_buffer("scale", torch.zeros(4))
    assert module_bytes(module) == (6 + 2) * 2 + 16


@pytest.mark.gpu
def test_gpu_memory_is_given_back():
    device = torch.device("cuda:0")
    residency = Residency(device, swap=True)
    modules = [nn.Linear(1024, 1024, bias=False).requires_grad_(False) for _ in range(2)]
    for module in modules:
        module.register_buffer("scale", torch.ones(1024))
        residency.register(module)
    expected = [m.weight.clone() for m in modules]
    host = [m.weight.data_ptr() for m in modules]
    base = torch.cuda.memory_allocated(device)
    for i in (0, 1, 0):
        residency.use(modules[i])
        assert modules[i].weight.is_cuda and modules[i].scale.is_cuda
        assert not modules[1 - i].weight.is_cuda and not modules[1 - i].scale.is_cuda
        assert modules[1 - i].weight.data_ptr() == host[1 - i]
        assert torch.equal(modules[i].weight.cpu(), expected[i])
        assert torch.cuda.memory_allocated(device) - base < 1.5 * 4 * 1024 * 1024
