"""Activation checkpointing: what the backward pass needs is computed again instead of kept.

========== ============================================== ======================================
mode       kept of a block                                computed again
========== ============================================== ======================================
``none``   everything                                     nothing
``block``  its input                                      the whole block
``matmul`` outputs of linears and of dense attention      norms, rotations, gates, activations,
                                                          sparse attention
========== ============================================== ======================================

The block's own ``forward`` is replaced, so parameter names stay as they are. Nothing in a block
draws random numbers, so their state is not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from turbodiffusion.errors import UsageError

Mode = Literal["none", "block", "matmul"]

_aten = torch.ops.aten
KEPT = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
"""Operators whose outputs ``matmul`` keeps: they cost more to compute than to hold. Batched
products are none of them: in portable sparse attention they are scores, larger than all else."""


def recompute_activations(network: nn.Module, *, mode: Mode, every: int = 1) -> None:
    """Apply ``mode`` to every ``every``-th block of ``network.blocks``.

    Raises:
        UsageError: an unknown mode.
    """
    if mode not in get_args(Mode):
        raise UsageError(
            "parallel-activations",
            f"There is no way {mode!r} to recompute activations.",
            f"Use one of {', '.join(get_args(Mode))}.",
        )
    if mode == "none":
        return
    contexts = partial(create_selective_checkpoint_contexts, _policy) if mode == "matmul" else None
    blocks = network.blocks
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks[::every]:
        block.forward = partial(_recomputed, block.forward, contexts)


def _recomputed(
    forward: Callable[..., Any], contexts: Callable[[], Any] | None, *inputs: Any, **named: Any
) -> Any:
    if not torch.is_grad_enabled():  # nothing is kept then; tangents need the plain form
        return forward(*inputs, **named)
    more: dict[str, Any] = {} if contexts is None else {"context_fn": contexts}
    return checkpoint(
        forward, *inputs, use_reentrant=False, preserve_rng_state=False, **more, **named
    )


def _policy(ctx: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
