"""Sparse-linear attention (SLA): exact attention to few key blocks, linear attention to all.

Tokens are cut into query blocks and key blocks. Block means of queries and of smoothed keys score
every pair of blocks; each query block keeps the ``topk`` share of key blocks that score highest.
``o_s`` is softmax attention restricted to those; ``o_l`` is linear attention with a feature map φ
over all keys; the layer's own projection joins them::

    o = o_s + o_l W_lᵀ + b_l        o_l = φ(q) (φ(k)ᵀ v) / (1e-5 + φ(q) · Σ φ(k))

Source: section 3 of the operator definitions. Scores are float32 with ties going to the lower
index, at least one block is kept, the linear branch is float32: where the released kernels differ
(bf16 scores, no block at all for a tiny ratio) they do so by accident of precision. Rounding of φ
and of the block means follows the dtype of the inputs, so float32 inputs are never rounded.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.ops import backend, dual

FeatureMap = Literal["softmax", "elu", "relu"]


def sparse_linear_attention(
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
    counts: Tensor | None = None,
) -> Tensor:
    """SLA over one set of tokens. Differentiable in everything but the choice of blocks.

    Args:
        q_BLND: queries after norm and rotary embedding, ``k_BLND`` and ``v_BLND`` alike.
        proj_weight: (D, D) and ``proj_bias`` (D,), shared by the heads, bf16 or float32.
        topk: share of key blocks each query block keeps, in (0, 1]; ⌊share · blocks⌋, at least 1.
        block_q: tokens in a query block; ``block_k`` in a key block. Last blocks may be shorter.
        feature_map: ``softmax`` over the head width, ``elu`` (elu + 1) or ``relu``.
        blocks: indices (B, N, query blocks, kept), each row ascending, to use instead of
            :func:`select_blocks`; ``ops.sla.maps`` makes such lists.
        counts: with ``blocks``: how many of each row count (B, N, query blocks), at least 1.

    Returns:
        (B, L, N, D) in the dtype of the queries.

    Raises:
        UsageError: shapes, ratio, block sizes or feature map that cannot be used; a pass with
            tangents, which sparse attention has none of.
    """
    if dual.active():
        raise UsageError(
            "ops-sla-tangent",
            "Sparse attention was asked for its derivative along a direction, and has none.",
            "Distil a network with dense attention and merge the sparse one's delta afterwards, or "
            "use the stage match, which needs no derivative.",
        )
    check_inputs("SLA", q_BLND, k_BLND, v_BLND, feature_map)
    if blocks is None:
        blocks = select_blocks(q_BLND, k_BLND, topk=topk, block_q=block_q, block_k=block_k)
    return backend.form("sla", q_BLND.device).sparse_linear_attention(
        q_BLND,
        k_BLND,
        v_BLND,
        proj_weight,
        proj_bias,
        blocks,
        block_q,
        block_k,
        feature_map,
        counts,
    )


def check_inputs(
    name: str, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor, feature_map: str
) -> None:
    """Raise a UsageError that calls the operator ``name`` where it cannot use these."""
    if not q_BLND.shape == k_BLND.shape == v_BLND.shape:
        raise UsageError(
            "ops-sla-shape",
            f"{name} got q {tuple(q_BLND.shape)}, k {tuple(k_BLND.shape)}, "
            f"v {tuple(v_BLND.shape)}; they must be equal.",
            "It is self-attention only; use ops.attention or ops.sage across sequences.",
        )
    if feature_map not in ("softmax", "elu", "relu"):
        raise UsageError(
            "ops-sla-feature-map",
            f"The feature map can be 'softmax', 'elu' or 'relu', not {feature_map!r}.",
            "Released weights were trained with 'softmax'.",
        )


def check_blocks(name: str, topk: float, block_q: int, block_k: int) -> None:
    """Raise a UsageError that calls the operator ``name`` for a share or blocks without sense."""
    if not 0 < topk <= 1 or block_q < 1 or block_k < 1:
        raise UsageError(
            "ops-sla-topk",
            f"{name} got topk {topk}, block_q {block_q}, block_k {block_k}; topk must lie in "
            "(0, 1] and blocks hold at least one token.",
            "The released models use topk 0.1 to 0.15 with blocks of 128 and 64.",
        )


def select_blocks(
    q_BLND: Tensor, k_BLND: Tensor, *, topk: float, block_q: int, block_k: int
) -> Tensor:
    """Key blocks that each query block attends to: int64 (B, N, ⌈L/block_q⌉, kept), ascending."""
    check_blocks("SLA", topk, block_q, block_k)
    with torch.no_grad():
        form = backend.form("sla", q_BLND.device)
        score_BNQK = form.block_scores(q_BLND, k_BLND, block_q, block_k)
        key_blocks = score_BNQK.shape[-1]
        return form.top_blocks(score_BNQK, min(key_blocks, max(1, int(topk * key_blocks))))


def block_map(q_BLND: Tensor, k_BLND: Tensor, *, topk: float, block_q: int, block_k: int) -> Tensor:
    """The choice of :func:`select_blocks` as a bool map (B, N, query blocks, key blocks)."""
    blocks = select_blocks(q_BLND, k_BLND, topk=topk, block_q=block_q, block_k=block_k)
    shape = *blocks.shape[:-1], -(-k_BLND.shape[1] // block_k)
    return torch.zeros(shape, dtype=torch.bool, device=blocks.device).scatter_(-1, blocks, True)
