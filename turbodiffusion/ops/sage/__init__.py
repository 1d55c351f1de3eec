"""8-bit attention: SageAttention, dense, and SageSLA, the same inside sparse-linear attention.

Queries and keys are int8 with one scale per block of tokens; the mean key is taken off first,
which softmax cannot see and which leaves keys that int8 can hold. Probabilities meet values in
``pv``: ``fp16``, ``bf16``, or ``fp8`` (e4m3, one scale per value channel), see :mod:`.config`.
Everything else (softmax, sums, the linear branch of SLA and its projection) keeps float32.

Source: sections 4 and 5 of the operator definitions. Against exact attention on the same blocks
the cosine is above 0.999 and the relative L1 error below 0.05; 16-bit values are closer than e4m3.
For inference only: rounding has no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.ops import backend
from turbodiffusion.ops.gpu import capability
from turbodiffusion.ops.sage.config import PRODUCTS, default_product
from turbodiffusion.ops.sla import check_blocks, check_inputs


def sage_attention(
    q_BLND: Tensor,
    k_BSND: Tensor,
    v_BSND: Tensor,
    *,
    smooth_k: bool = True,
    pv: str = "auto",
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend from L queries to S keys, every key to every query.

    Args:
        q_BLND: queries, batch × tokens × heads × head width, any float dtype.
        k_BSND: keys of the same dtype; ``v_BSND`` the values.
        smooth_k: take the mean key off before quantising. Off only to study what it does.
        pv: format of probabilities and values, ``fp16``, ``bf16`` or ``fp8``; ``auto`` goes by GPU.
        return_lse: also return the logarithm of each row's sum of exponentials.

    Returns:
        (B, L, N, D) in the dtype of the queries; with ``return_lse`` also the base-2 LSE
        (B, N, L) in float32 of the unsmoothed scaled scores, as all attention here has it:
        ``ops.attention.merge`` joins parts by it.

    Raises:
        UsageError: shapes that do not belong together, an unknown ``pv``, or a wanted gradient.
    """
    if k_BSND.shape != v_BSND.shape or q_BLND.shape[::2] != k_BSND.shape[::2] or (
        q_BLND.shape[3] != k_BSND.shape[3]
    ):  # fmt: skip
        raise UsageError(
            "ops-sage-shape",
            f"8-bit attention got q {tuple(q_BLND.shape)}, k {tuple(k_BSND.shape)}, "
            f"v {tuple(v_BSND.shape)}; k and v must be alike and share B, N and D with q.",
            "Give tensors laid out as (batch, tokens, heads, head width).",
        )
    _refuse_gradients(q_BLND, k_BSND, v_BSND)
    out_BLND, lse_BNL = backend.form("sage", q_BLND.device).sage_attention(
        q_BLND, k_BSND, v_BSND, smooth_k, _product(pv, q_BLND.device)
    )
    return (out_BLND, lse_BNL) if return_lse else out_BLND


def sage_sparse_linear_attention(
    q_BLND: Tensor,
    k_BLND: Tensor,
    v_BLND: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    *,
    topk: float,
    block_q: int,
    block_k: int,
    feature_map: str,
    blocks: Tensor | None = None,
    pv: str = "auto",
) -> Tensor:
    """:func:`turbodiffusion.ops.sla.sparse_linear_attention` with an 8-bit sparse branch.

    Args:
        q_BLND: queries after norm and rotary embedding, ``k_BLND`` and ``v_BLND`` alike.
        proj_weight: (D, D) and ``proj_bias`` (D,), shared by the heads, bf16 or float32.
        topk: share of key blocks each query block keeps, in (0, 1]; ⌊share · blocks⌋, at least 1.
        block_q: tokens in a query block; ``block_k`` in a key block. Last blocks may be shorter.
        feature_map: ``softmax`` over the head width, ``elu`` (elu + 1) or ``relu``.
        blocks: ascending indices (B, N, query blocks, kept) to use instead of a choice by topk.
        pv: format of probabilities and values, as for :func:`sage_attention`.

    Returns:
        (B, L, N, D) in the dtype of the queries.

    Raises:
        UsageError: shapes, ratio, block sizes, feature map or ``pv`` that cannot be used, or a
            wanted gradient.
    """
    check_inputs("SageSLA", q_BLND, k_BLND, v_BLND, feature_map)
    check_blocks("SageSLA", topk, block_q, block_k)
    _refuse_gradients(q_BLND, k_BLND, v_BLND, proj_weight, proj_bias)
    return backend.form("sage", q_BLND.device).sage_sparse_linear_attention(
        q_BLND, k_BLND, v_BLND, proj_weight, proj_bias, blocks, topk, block_q, block_k,
        feature_map, _product(pv, q_BLND.device),
    )  # fmt: skip


def _product(pv: str, device: torch.device) -> str:
    if pv == "auto":
        return default_product(capability(device))
    if pv not in PRODUCTS:
        raise UsageError(
            "ops-sage-pv",
            f"Probabilities and values can be auto, {', '.join(PRODUCTS)}, not {pv!r}.",
            "Leave it at 'auto'.",
        )
    return pv


def _refuse_gradients(*inputs: Tensor) -> None:
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        raise UsageError(
            "ops-sage-gradient",
            "8-bit attention has no gradient, but an input requires one.",
            "Train with attention 'sla' or 'dense', or call it under torch.no_grad().",
        )
