"""SLA by Triton kernels, forward and backward.

Forward: one pass over k and v gives the state of the linear branch, whose product with ``proj_l``
is folded into it; the attention kernel then adds the branch to the sparse one before its only
store. Backward: the linear branch's kernels write their share of dq, dk and dv, and the attention
kernels add the sparse share, walking the lists and their transposition.

Also for other operators: :func:`linear_state`, :func:`linear_branch`, :func:`pooled`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from turbodiffusion.ops import gpu
from turbodiffusion.ops.attention.triton import (
    BlockLists,
    LinearBranch,
    attend,
    attend_backward,
    check,
    inner_contiguous,
    on,
    precision,
    strides,
)
from turbodiffusion.ops.gpu import obstacle  # noqa: F401
from turbodiffusion.ops.sla import naive
from turbodiffusion.ops.sla.config import WIDEST_ROW, SelectConfig, TokenConfig
from turbodiffusion.ops.sla.linear_kernels import (
    linear_key_kernel,
    linear_query_kernel,
    token_product_kernel,
)
from turbodiffusion.ops.sla.map_kernels import pool_kernel, select_kernel, transpose_kernel


def block_scores(q_BLND: Tensor, k_BLND: Tensor, block_q: int, block_k: int) -> Tensor:
    """As in ``naive``, but the mean key is taken from the means of the blocks.

    One pass over q and one over k. The mean key is subtracted after pooling instead of before,
    which skips a rounding.
    """
    dtype = q_BLND.dtype
    q_BNQD = pooled(q_BLND, block_q)[0].to(dtype).float()
    k_BNKD, mean_BN1D = pooled(k_BLND, block_k)
    return q_BNQD @ (k_BNKD - mean_BN1D).to(dtype).float().mT


def pooled(x_BLND: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Means of the blocks (B, N, blocks, D) and of all tokens (B, N, 1, D), float32."""
    length, sums = x_BLND.shape[1], pool(x_BLND, block, "sum")
    means = sums / block
    means[:, :, -1] = sums[:, :, -1] / (length - (sums.shape[2] - 1) * block)
    return means, sums.sum(2, keepdim=True) / length


def pool(x_BLND: Tensor, block: int, kind: str) -> Tensor:
    """``sum`` or ``amax``, the largest magnitude, of each block: float32 (B, N, blocks, D)."""
    x = inner_contiguous(x_BLND)
    b, length, n, d = x.shape
    blocks = -(-length // block)
    config = TokenConfig.pool(block)
    out = torch.empty(b, n, blocks, d, dtype=torch.float32, device=x.device)
    with on(x.device):
        pool_kernel[b * n, blocks](
            x, out, length, n, *strides(x), D=d, BLOCK=block, TILE=config.tile, KIND=kind,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    return out


def top_blocks(scores_BNQK: Tensor, kept: int) -> Tensor:
    """As in ``naive``: int64 (B, N, Q, kept)."""
    width = scores_BNQK.shape[-1]
    if width > WIDEST_ROW:
        return naive.top_blocks(scores_BNQK, kept)
    scores = scores_BNQK.contiguous()
    blocks = torch.empty(*scores.shape[:-1], kept, dtype=torch.int64, device=scores.device)
    config = SelectConfig.row(width)
    with on(scores.device):
        select_kernel[(scores.numel() // width,)](
            scores, blocks, width, kept, WIDTH=config.width, num_warps=config.num_warps
        )
    return blocks


def sparse_attention(
    q_BLND: Tensor,
    k_BSND: Tensor,
    v_BSND: Tensor,
    blocks: Tensor,
    block_q: int,
    block_k: int,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As in ``naive``; without gradients."""
    return attend(q_BLND, k_BSND, v_BSND, BlockLists(blocks, block_q, block_k, counts))


def sparse_linear_attention(
    q_BLND: Tensor,
    k_BLND: Tensor,
    v_BLND: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    blocks: Tensor,
    block_q: int,
    block_k: int,
    feature_map: str,
    counts: Tensor | None = None,
) -> Tensor:
    lists = BlockLists(blocks, block_q, block_k, counts)
    return SparseLinear.apply(q_BLND, k_BLND, v_BLND, proj_weight, proj_bias, lists, feature_map)


class SparseLinear(torch.autograd.Function):
    """SLA with its gradients. Saves inputs, output and log-sum-exp; nothing of size L × blocks."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: Tensor,
        lists: BlockLists, feature_map: str,
    ) -> Tensor:  # fmt: skip
        check(q)
        state, key_sum, unit = linear_state(k, v, feature_map)
        linear = linear_branch(state, key_sum, unit, weight, bias, feature_map, q.dtype)
        out, lse = attend(q, k, v, lists, linear)
        ctx.save_for_backward(q, k, v, weight, bias, out, lse, state, key_sum, unit, lists.blocks)
        ctx.lists, ctx.feature_map = lists, feature_map
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weight, bias, out, lse, state, key_sum, unit, _ = ctx.saved_tensors
        grads, d_weight, d_bias, delta = linear_backward(
            q, k, v, out, grad, state, key_sum, unit, weight, bias, ctx.feature_map
        )
        transposed = transpose(ctx.lists, k.shape[1])
        dq, dk, dv = attend_backward(q, k, v, grad, lse, delta, ctx.lists, transposed, into=grads)
        return dq, dk, dv, d_weight.to(weight.dtype), d_bias.to(bias.dtype), None, None


def linear_state(k_BLND: Tensor, v_BLND: Tensor, feature_map: str) -> tuple[Tensor, Tensor, Tensor]:
    """State of the linear branch over all keys, float32.

    Returns:
        ``unit · φ(k)ᵀ v`` (B·N, D, D), ``Σ φ(k)`` (B·N, D) and ``unit`` = 1 / max Σ φ(k) (B·N,),
        which bounds the state by the largest value, however many tokens there are.
    """
    product, total = token_product(k_BLND, v_BLND, feature_map)
    unit = 1 / total.amax(-1).clamp(min=naive.EPS)
    return product * unit[:, None, None], total, unit


def linear_branch(
    state: Tensor, key_sum: Tensor, unit: Tensor, weight: Tensor, bias: Tensor,
    feature_map: str, dtype: torch.dtype,
) -> LinearBranch:  # fmt: skip
    """What the forward kernel takes: the state with ``proj_l`` folded in, in two parts.

    The second part is what the first lost by rounding, so that half-precision products see the
    state with twice its digits.
    """
    folded = state @ weight.float().mT
    parts = torch.empty(2, *folded.shape, dtype=dtype, device=folded.device)
    parts[0] = folded
    parts[1] = folded - parts[0].float()
    return LinearBranch(parts, key_sum, unit, bias.float().contiguous(), feature_map)


def token_product(
    x_BLND: Tensor, y_BLND: Tensor, feature_map: str = "none", weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``f(x)ᵀ y`` (B·N, D, D) and ``Σ weight · f(x)`` (B·N, D) over the tokens, float32.

    Chunks of tokens are summed by one program each and added up in order: no atomics.
    ``weight`` is float32 (B, N, L).
    """
    x, y = inner_contiguous(x_BLND), inner_contiguous(y_BLND)
    b, length, n, d = x.shape
    config = TokenConfig.token_product(d, x.element_size())
    tiles = -(-length // config.tile)
    chunk = config.tile * -(-tiles // max(1, min(tiles, config.programs // (b * n))))
    chunks = -(-length // chunk)
    products = torch.empty(chunks, b * n, d, d, dtype=torch.float32, device=x.device)
    sums = torch.empty(chunks, b * n, d, dtype=torch.float32, device=x.device)
    with on(x.device):
        token_product_kernel[chunks, b * n](
            x, y, sums if weight is None else weight, products, sums, length, n, chunk,
            *strides(x), *strides(y), D=d, TILE=config.tile, FEATURE=feature_map,
            WEIGHTED=weight is not None, PRECISION=precision(x.dtype),
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    return products.sum(0), sums.sum(0)


def linear_backward(
    q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor, out_BLND: Tensor, grad_BLND: Tensor,
    state: Tensor, key_sum: Tensor, unit: Tensor, weight: Tensor, bias: Tensor, feature_map: str,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients through the linear branch (section 3.4 of the operator definitions).

    Returns:
        (dq, dk, dv) of this branch, dW, db, and ``delta`` (B, N, L) of the sparse branch.
    """
    q, k, v, g = (inner_contiguous(x) for x in (q_BLND, k_BLND, v_BLND, grad_BLND.to(q_BLND.dtype)))
    b, length, n, d = q.shape
    dtype = q.dtype
    dq, dk, dv, dn, o_lin = (q.new_empty(q.shape) for _ in range(5))
    dz, delta = (torch.empty(b, n, length, dtype=torch.float32, device=q.device) for _ in range(2))
    config = TokenConfig.linear_backward(gpu.capability(q.device), d, q.element_size())
    tiles = -(-length // config.tile)
    constants: dict[str, Any] = {
        "D": d, "TILE": config.tile, "FEATURE": feature_map, "PRECISION": precision(dtype),
        "num_warps": config.num_warps, "num_stages": config.num_stages,
    }  # fmt: skip
    with on(q.device):
        linear_query_kernel[tiles, b * n](
            q, out_BLND, g, dq, dn, o_lin, dz, delta, state.to(dtype), key_sum, unit,
            weight.to(dtype).contiguous(), bias.float().contiguous(), length, n,
            *strides(q), *strides(out_BLND), *strides(g), **constants,
        )  # fmt: skip
        d_state, d_sum = token_product(q, dn, feature_map, dz)
        d_state = (d_state * unit[:, None, None]).to(dtype)
        linear_key_kernel[tiles, b * n](
            k, v, dk, dv, d_state, d_sum * unit[:, None],
            length, n, *strides(k), *strides(v), **constants,
        )  # fmt: skip
    d_weight, d_bias = token_product(g, o_lin)
    return (dq, dk, dv), d_weight.sum(0), d_bias.sum(0), delta


def transpose(lists: BlockLists, keys: int) -> tuple[Tensor, Tensor]:
    """The query blocks that chose each key block, as ``attend_backward`` takes them.

    Made on the device without waiting for it; lists are ascending, whatever the order of work.
    """
    blocks = lists.blocks
    b, n, query_blocks, kept = blocks.shape
    key_blocks = -(-keys // lists.block_k)
    index = blocks.long()
    if lists.counts is not None:  # what is not listed goes to a column of its own
        listed = torch.arange(kept, device=blocks.device) < lists.counts[..., None]
        index = torch.where(listed, index, key_blocks)
    chosen_map = torch.zeros(
        b * n, query_blocks, key_blocks + 1, dtype=torch.int8, device=blocks.device
    ).scatter_(-1, index.view(b * n, query_blocks, kept), 1)
    sizes = chosen_map[..., :-1].sum(1, dtype=torch.int32).flatten()
    offsets = torch.zeros(sizes.numel() + 1, dtype=torch.int32, device=blocks.device)
    torch.cumsum(sizes, 0, dtype=torch.int32, out=offsets[1:])
    chosen = torch.empty(blocks.numel(), dtype=torch.int32, device=blocks.device)
    tile = 32
    with on(blocks.device):
        transpose_kernel[triton.cdiv(key_blocks, tile), b * n](
            chosen_map, offsets, chosen, query_blocks, key_blocks, key_blocks + 1,
            TILE_Q=64, TILE_K=tile,
        )  # fmt: skip
    return offsets, chosen
