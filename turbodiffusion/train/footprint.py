"""What a block's forward and backward pass hold in memory, counted on tensors without bytes.

The block runs as it would, with its recomputation, on torch's fake tensors; a dispatch mode sees
every one of them come and go. Operators are those of a CPU, which keep for the backward pass what
kernels keep, or more: the count is an upper bound for a GPU with Triton.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from turbodiffusion.models.cards import Attention, DiTConfig
from turbodiffusion.models.dit import Block
from turbodiffusion.parallel.activations import Mode, recompute_activations

COUNTED = 1280, 2560
"""Tokens of the two counts: whole key blocks, and with a top-k ratio of 0.1 whole kept ones."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one block: ``kept`` from its forward to its backward pass, ``peak`` during them."""

    kept: int
    peak: int


class _Alive(TorchDispatchMode):
    """Bytes of the storages made in here that are still referenced, now and at most.

    Args:
        before: tensors that are there already and do not count.
    """

    def __init__(self, *before: Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen = weakref.WeakSet(tensor.untyped_storage() for tensor in before)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage not in self.seen:
                    self.seen.add(storage)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, size: int) -> None:
        self.now -= size


@contextmanager
def _one_thread() -> Iterator[None]:
    """Fake tensors live in one thread, and operators start as many as torch computes with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def block_footprint(
    config: DiTConfig, attention: Attention, *, samples: int, tokens: int, dtype: torch.dtype,
    mode: Mode,
) -> Footprint:  # fmt: skip
    """Of one block that sees ``tokens`` tokens of each of ``samples`` videos.

    Gradients of the parameters are left out of both figures; the input's is in ``peak``. Beyond
    :data:`COUNTED` tokens, where counting takes minutes, the line through two counts goes on: no
    tensor of a block grows faster than its tokens, but for the indices of sparse attention.
    """
    if tokens <= COUNTED[1]:
        return _count(config, attention, samples, tokens, dtype, mode)
    short, long = (_count(config, attention, samples, n, dtype, mode) for n in COUNTED)
    steps = (tokens - COUNTED[0]) / (COUNTED[1] - COUNTED[0])
    return Footprint(
        round(short.kept + steps * (long.kept - short.kept)),
        round(short.peak + steps * (long.peak - short.peak)),
    )


@cache
def _count(
    config: DiTConfig, attention: Attention, samples: int, tokens: int, dtype: torch.dtype,
    mode: Mode,
) -> Footprint:  # fmt: skip
    with FakeTensorMode(), _one_thread():
        block = Block(config, attention, quantized=False)
        for module in block.modules():  # fake tensors do not bear Module.to
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.detach().to(dtype)))
        x = torch.empty(samples, tokens, config.dim, dtype=dtype, requires_grad=True)
        e = torch.empty(samples, 6, config.dim)
        table = (torch.empty(tokens, config.head_dim // 2),) * 2
        text = torch.empty(samples, config.text_len, config.dim, dtype=dtype)
        holder = nn.Module()
        holder.blocks = nn.ModuleList([block])
        recompute_activations(holder, mode=mode)
        with _Alive(x, e, table[0], text, *block.parameters()) as alive:
            y = block(x, e, table, text)
            gc.collect()  # what only cycles refer to is gone as well
            kept = alive.now
            y.backward(torch.empty_like(y), inputs=[x])
    return Footprint(kept, alive.peak)
