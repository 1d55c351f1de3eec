"""One process: mixed precision without shards.

A network of one process needs no gathering. Its parameters stay float32 and are cast to the
computing precision in one step when a call begins, so optimiser, average and checkpoints see plain
tensors, and the host has little to do between kernels: with FSDP over one process it was what a
step of a small network waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def cast_network(network: nn.Module, *, dtype: torch.dtype, trained: bool = True) -> None:
    """What :func:`.shard.shard_network` does, for one process and without recomputation.

    Recomputed blocks run outside the call of the network, where its cast parameters are gone.

    Args:
        dtype: computing precision. trained: False freezes the network and stores it in ``dtype``.
    """
    network.compute_dtype = dtype  # type: ignore[assignment]
    network.requires_grad_(trained)
    network.to(torch.float32 if trained else dtype)
    network.set_requires_gradient_sync = _nothing  # type: ignore[assignment]
    if trained and dtype is not torch.float32:
        cast = _Cast(network, dtype)
        network.register_forward_pre_hook(cast.begin)
        network.register_forward_hook(cast.end, always_call=True)


def _nothing(sync: bool) -> None:
    """There is nobody to exchange gradients with."""


class _Cast:
    """Exchanges the parameters of a network for cast ones while it is called."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.places = [
            (module._parameters, name)
            for module in network.modules()
            for name, _ in module.named_parameters(recurse=False)
        ]
        self.kept: list[Any] = []

    def begin(self, *_: Any) -> None:
        self.kept = [owner[name] for owner, name in self.places]
        cast = _CastAll.apply(self.dtype, *self.kept)
        for (owner, name), value in zip(self.places, cast, strict=True):
            owner[name] = value

    def end(self, *_: Any) -> None:
        for (owner, name), parameter in zip(self.places, self.kept, strict=True):
            owner[name] = parameter
        self.kept = []


class _CastAll(torch.autograd.Function):
    """Tensors in another type, all in one launch; so are their gradients on the way back."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(_copied(values, dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [g for g in grads if g is not None]
        made = iter(_copied(there, torch.float32))
        return None, *(None if g is None else next(made) for g in grads)


def _copied(values: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    out = [torch.empty_like(x, dtype=dtype) for x in values]
    if out:
        torch._foreach_copy_(out, list(values))
    return out
