"""Attention by Triton kernels: dense here, and the parts that sparse attention is made of.

:func:`attend` and :func:`attend_backward` take optional lists of key blocks; without lists every
query meets every key. Tensors are (batch, tokens, heads, width) with any strides, the width
contiguous; no layout is copied. The log-sum-exp is base 2, float32 (B, N, L).
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.ops import gpu
from turbodiffusion.ops.attention.backward import key_kernel, query_kernel
from turbodiffusion.ops.attention.config import AttentionConfig
from turbodiffusion.ops.attention.forward import attend_kernel
from turbodiffusion.ops.gpu import obstacle  # noqa: F401

WIDTHS = (16, 32, 64, 128)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class BlockLists:
    """Which key blocks each query block meets.

    Args:
        blocks: integers (B, N, query blocks, most kept), each row ascending.
        counts: how many of a row count (B, N, query blocks); None if all do. What follows in a
            row is not read as a block.
        block_q: queries in a block; ``block_k`` keys.
    """

    blocks: Tensor
    block_q: int
    block_k: int
    counts: Tensor | None = None


@dataclass(frozen=True)
class LinearBranch:
    """What the forward kernel adds to the sparse branch; see ``ops/sla/triton.py``.

    Args:
        state: (2, B·N, D, D): ``unit · φ(k)ᵀ v W_lᵀ`` rounded to the dtype of q, and the rest.
        key_sum: Σ φ(k), float32 (B·N, D); ``unit`` (B·N,) and ``bias`` (D,) float32.
    """

    state: Tensor
    key_sum: Tensor
    unit: Tensor
    bias: Tensor
    feature_map: str


def attention(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor) -> Tensor:
    return DenseAttention.apply(q_BLND, k_BSND, v_BSND)


class DenseAttention(torch.autograd.Function):
    """Dense attention with its gradients; inputs and output as in ``ops.attention.attention``."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = attend(q, k, v)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, lse = ctx.saved_tensors
        delta = (out.float() * grad.float()).sum(-1).transpose(1, 2).contiguous()
        return attend_backward(q, k, v, grad, lse, delta)


def attend(
    q_BLND: Tensor,
    k_BSND: Tensor,
    v_BSND: Tensor,
    lists: BlockLists | None = None,
    linear: LinearBranch | None = None,
    config: AttentionConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention and its base-2 log-sum-exp, (B, L, N, D) contiguous and float32 (B, N, L)."""
    q, k, v = (inner_contiguous(x) for x in (q_BLND, k_BSND, v_BSND))
    (b, length, n, d), s = q.shape, k.shape[1]
    check(q)
    if config is None:
        config = AttentionConfig.forward(gpu.capability(q.device), d, q.element_size())
    out = q.new_empty(b, length, n, d)
    lse = torch.empty(b, n, length, dtype=torch.float32, device=q.device)
    geometry, query_blocks = _geometry(config, lists, length)
    tiles = geometry.pop("tiles")
    parts = config.parts if geometry["TILE_Q"] == config.tile_q else 1
    exact = geometry["GROUP"] * geometry["BLOCK_K"] == geometry["TILE_K"]
    blocks, counts = (q, None) if lists is None else (lists.blocks, lists.counts)
    kept = -(-s // geometry["BLOCK_K"]) if lists is None else blocks.shape[-1]
    if linear is None:
        state = key_sum = unit = bias = lse  # not read
    else:
        state, key_sum, unit, bias = linear.state, linear.key_sum, linear.unit, linear.bias
    with on(q.device):
        attend_kernel[query_blocks * tiles, b * n](
            q, k, v, out, lse, blocks.contiguous() if lists else q,
            lse if counts is None else counts.contiguous(), state, key_sum, unit, bias,
            score_scale(d), length, s, n, tiles, kept,
            *strides(q), *strides(k), *strides(v), *strides(out),
            D=d, **geometry, PARTS=parts, SPARSE=lists is not None, COUNTED=counts is not None,
            LINEAR=linear is not None, FEATURE=linear.feature_map if linear else "none",
            PEEL=config.peel and exact, PRECISION=precision(q.dtype),
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    return out, lse


def attend_backward(
    q_BLND: Tensor,
    k_BSND: Tensor,
    v_BSND: Tensor,
    grad_BLND: Tensor,
    lse_BNL: Tensor,
    delta_BNL: Tensor,
    lists: BlockLists | None = None,
    transposed: tuple[Tensor, Tensor] | None = None,
    into: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v.

    Args:
        delta_BNL: rowsum(out · grad) of the attention alone, float32.
        transposed: with ``lists``: where each key block's list begins (B·N·key blocks + 1,) and
            the query blocks that chose it, one list after the other.
        into: contiguous gradients of another branch, to be added to in place.
    """
    q, k, v, g = (inner_contiguous(x) for x in (q_BLND, k_BSND, v_BSND, grad_BLND.to(q_BLND.dtype)))
    (b, length, n, d), s = q.shape, k.shape[1]
    dq, dk, dv = into or (x.new_empty(x.shape) for x in (q, k, v))
    shared: dict[str, Any] = {
        "D": d, "SPARSE": lists is not None, "ADD": into is not None,
        "PRECISION": precision(q.dtype),
    }  # fmt: skip
    capability, scale = gpu.capability(q.device), score_scale(d)
    with on(q.device):
        config = AttentionConfig.query_backward(capability, d, q.element_size())
        geometry, query_blocks = _geometry(config, lists, length, pairs=False)
        tiles = geometry.pop("tiles")
        geometry.pop("GROUP")
        blocks, counts = (q, None) if lists is None else (lists.blocks.contiguous(), lists.counts)
        kept = -(-s // geometry["BLOCK_K"]) if lists is None else blocks.shape[-1]
        query_kernel[query_blocks * tiles, b * n](
            q, k, v, g, dq, lse_BNL, delta_BNL, blocks,
            lse_BNL if counts is None else counts.contiguous(), scale, length, s, n, tiles, kept,
            *strides(q), *strides(k), *strides(v), *strides(g), *strides(dq),
            COUNTED=counts is not None, **geometry, **shared,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
        config = AttentionConfig.key_backward(capability, d, q.element_size())
        block_q = config.tile_q if lists is None else lists.block_q
        block_k = config.tile_k if lists is None else lists.block_k
        config = config.fit(block_q, block_k)
        key_tiles = -(-block_k // config.tile_k)
        offsets, chosen = transposed or (lse_BNL, lse_BNL)
        key_kernel[-(-s // block_k) * key_tiles, b * n](
            q, k, v, g, dk, dv, lse_BNL, delta_BNL, offsets, chosen,
            scale, length, s, n, key_tiles, -(-length // block_q),
            *strides(q), *strides(k), *strides(v), *strides(g), *strides(dk), *strides(dv),
            BLOCK_Q=block_q, BLOCK_K=block_k, TILE_Q=config.tile_q, TILE_K=config.tile_k,
            SPLIT=-(-block_q // config.tile_q), **shared,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    return dq, dk, dv


def _geometry(
    config: AttentionConfig, lists: BlockLists | None, length: int, pairs: bool = True
) -> tuple[dict[str, Any], int]:
    """Constants of a walk over key blocks, with ``tiles`` of a query block; number of those."""
    block_q = config.tile_q if lists is None else lists.block_q
    block_k = config.tile_k if lists is None else lists.block_k
    fitted = config.fit(block_q, block_k, pairs)
    tile_q, tile_k = fitted.tile_q, fitted.tile_k
    group = 2 if tile_k == 2 * block_k else 1
    geometry = {
        "BLOCK_Q": block_q, "BLOCK_K": block_k, "TILE_Q": tile_q, "TILE_K": tile_k,
        "SPLIT": -(-block_k // tile_k), "GROUP": group,
        "tiles": -(-block_q // tile_q),
    }  # fmt: skip
    return geometry, -(-length // block_q)


def check(q: Tensor) -> None:
    """Raise a UsageError for a width or dtype the kernels do not take."""
    if q.shape[-1] not in WIDTHS or q.dtype not in DTYPES:
        raise UsageError(
            "ops-attention-triton",
            f"Triton attention got heads of width {q.shape[-1]} in {q.dtype}; it takes widths "
            f"{', '.join(map(str, WIDTHS))} in bfloat16, float16 or float32.",
            "Set TURBODIFFUSION_BACKEND=portable for this network.",
        )


def score_scale(width: int) -> float:
    """log2(e) / √D: turns a product of q and k into a base-2 exponent."""
    return math.log2(math.e) / math.sqrt(width)


def precision(dtype: torch.dtype) -> str:
    """How a product of this dtype is made: float32 from three TF32 products, error about 1e-6."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def inner_contiguous(x: Tensor) -> Tensor:
    """``x`` itself unless its last axis is strided."""
    return x if x.stride(-1) == 1 else x.contiguous()


def strides(x_BLND: Tensor) -> tuple[int, int, int]:
    """Strides of batch, tokens and heads, the order the kernels take."""
    return x_BLND.stride(0), x_BLND.stride(1), x_BLND.stride(2)


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Kernels start on the current GPU: make ``device`` current where it is not."""
    if device.type == "cuda" and device.index not in (None, torch.cuda.current_device()):
        return torch.cuda.device(device)
    return contextlib.nullcontext()
