"""What a block's forward and backward pass hold in memory, counted on tensors without bytes.

The block runs as it would, with its recomputation, on torch's fake tensors; a dispatch mode sees
every one of them come and go. Operators are the portable ones, which hold more than the
kernels do, most of all in sparse attention: the count is an upper bound for a GPU with Triton.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from turbodiffusion.models.cards import Attention, DiTConfig
from turbodiffusion.models.dit import Block
from turbodiffusion.parallel.activations import Mode, recompute_activations


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


def block_footprint(
    config: DiTConfig, attention: Attention, *, samples: int, tokens: int, dtype: torch.dtype,
    mode: Mode,
) -> Footprint:  # fmt: skip
    """Of one block that sees ``tokens`` tokens of each of ``samples`` videos.

    Gradients of the parameters are left out of both figures; the input's is in ``peak``.
    """
    with FakeTensorMode():
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
            kept = alive.now
            y.backward(torch.empty_like(y), inputs=[x])
    return Footprint(kept, alive.peak)
