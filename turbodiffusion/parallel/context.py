"""Ulysses sequence parallelism: every process of a group holds a part of the tokens of a video.

Norms, linears and cross-attention see only their own tokens. Self-attention needs all of them, but
its heads are independent, so the group exchanges tokens for heads before it and back after it::

    q, k, v (B, L/P, N, D) → all-to-all → (B, L, N/P, D) → attention → all-to-all → (B, L/P, N, D)

Any attention works in between, dense or sparse: it sees whole sequences of fewer heads.

Every process gives the network the same input and receives the whole output, so all compute the
same loss. Each differentiates through its own tokens only; the sum over the group is the gradient.
Gradients are averaged over all processes later (:mod:`.shard`), the group's included, so the part
is multiplied by P here, and the average is that of one process.

The exchanges are linear: their tangent is the same exchange, so forward-mode differentiation
(``torch.func.jvp``) passes through.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from turbodiffusion.errors import UsageError
from turbodiffusion.models.dit import Block, Head, SelfAttention, WanDiT

TOKENS, HEADS = 1, 2
"""Axes of a (B, L, N, D) tensor."""


def split_sequence(network: WanDiT, *, group: dist.ProcessGroup | None) -> None:
    """Make ``network`` share its tokens with the processes of ``group``; None changes nothing.

    Raises:
        UsageError: the group's size does not divide the heads; in a call, the tokens.
    """
    if group is None:
        return
    size = group.size()
    if network.config.num_heads % size:
        heads = network.config.num_heads
        fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise UsageError(
            "parallel-heads",
            f"{heads} heads cannot be exchanged among {size} processes.",
            f"Set context to one of {fitting}.",
        )
    for index, block in enumerate(network.blocks):
        block.register_forward_pre_hook(partial(_take_tokens, group=group, cut=index == 0))
        attention = block.self_attn
        assert isinstance(block, Block) and isinstance(attention, SelfAttention)
        attention.attend = partial(_attend, attention.attend, group)  # type: ignore[method-assign]
    network.head.register_forward_hook(partial(_join_tokens, group=group))


def to_heads(x_BLND: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All tokens of a part of the heads, from a part of the tokens of all heads."""
    return _Exchange.apply(x_BLND, group, HEADS, TOKENS)


def to_tokens(x_BLND: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The inverse of :func:`to_heads`."""
    return _Exchange.apply(x_BLND, group, TOKENS, HEADS)


def _attend(
    attend: Callable[..., Tensor], group: dist.ProcessGroup, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    return to_tokens(attend(*(to_heads(x, group) for x in (q, k, v))), group)


def _take_tokens(
    block: nn.Module, inputs: tuple[Any, ...], *, group: dist.ProcessGroup, cut: bool
) -> tuple[Any, ...]:
    """Own tokens, for the first block, and their part of the rotary table, for every one."""
    x_BLD, e_B6D, table, text = inputs
    length, size = table[0].shape[0], group.size()
    if length % size:
        raise UsageError(
            "parallel-tokens",
            f"{length} tokens cannot be split among {size} processes.",
            "Set context to a divisor of the tokens, or change the size of the video.",
        )
    if cut:
        x_BLD = x_BLD.chunk(size, TOKENS)[group.rank()]
    return x_BLD, e_B6D, tuple(part.chunk(size)[group.rank()] for part in table), text


def _join_tokens(
    head: Head, inputs: tuple[Any, ...], out_BLP: Tensor, *, group: dist.ProcessGroup
) -> Tensor:
    return _Gather.apply(out_BLP, group)


class _Exchange(torch.autograd.Function):
    """Cut axis ``cut`` over the group and join axis ``join``: one all-to-all."""

    @staticmethod
    def forward(x: Tensor, group: dist.ProcessGroup, cut: int, join: int) -> Tensor:
        return _all_to_all(x, group, cut, join)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *ctx.way = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        group, cut, join = ctx.way
        return _all_to_all(grad, group, join, cut), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:  # type: ignore[override]
        return _all_to_all(tangent, *ctx.way)


class _Gather(torch.autograd.Function):
    """All tokens from the parts; the gradient of the own part, times P (see the module)."""

    @staticmethod
    def forward(x_BLP: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _all_gather(x_BLP, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_BLP: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        size = ctx.group.size()
        return grad_BLP.chunk(size, TOKENS)[ctx.group.rank()] * size, None

    @staticmethod
    def jvp(ctx: Any, tangent_BLP: Tensor, *_: Any) -> Tensor:  # type: ignore[override]
        return _all_gather(tangent_BLP, ctx.group)


def _all_to_all(x: Tensor, group: dist.ProcessGroup, cut: int, join: int) -> Tensor:
    parts = torch.stack(x.chunk(group.size(), cut))
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group)
    return torch.cat(received.unbind(), dim=join)


def _all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(group.size())]
    dist.all_gather(parts, x, group=group)
    return torch.cat(parts, dim=TOKENS)
