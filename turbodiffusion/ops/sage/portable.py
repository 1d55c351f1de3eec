"""8-bit attention for any device: the accuracy of the kernels, not their speed.

Operands are rounded as the kernels round them and multiplied in float32, where products of those
integers are exact. Each query block gathers its kept key blocks one after the other, so work and
memory are proportional to the kept share.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from turbodiffusion.ops.sage.naive import (
    BLOCK_K,
    BLOCK_Q,
    E4M3_OFFSET,
    column_mean,
    narrow,
    quantise,
    quantise_values,
    smoothed,
)
from turbodiffusion.ops.sla import select_blocks
from turbodiffusion.ops.sla.linear import linear_branch

SCORES_AT_A_TIME = 1 << 24  # float32 scores held for a bounded number of query blocks


def sage_attention(
    q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor, smooth_k: bool, pv: str
) -> tuple[Tensor, Tensor]:
    b, length, n, d = q_BLND.shape
    every = torch.arange(-(-k_BSND.shape[1] // BLOCK_K), device=q_BLND.device)
    blocks = every.expand(b, n, -(-length // BLOCK_Q), -1)
    mean_B1ND = column_mean(k_BSND) if smooth_k else torch.zeros_like(k_BSND[:, :1])
    k_smooth = smoothed(k_BSND, mean_B1ND)
    out_BNLD, lse_BNL = sparse_branch(q_BLND, k_smooth, v_BSND, blocks, BLOCK_Q, BLOCK_K, pv)
    shift_BLN = (q_BLND.float() * mean_B1ND.float()).sum(-1) * (d**-0.5 * math.log2(math.e))
    return out_BNLD.transpose(1, 2).to(q_BLND.dtype), lse_BNL + shift_BLN.transpose(1, 2)


def sage_sparse_linear_attention(
    q_BLND: Tensor,
    k_BLND: Tensor,
    v_BLND: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    blocks: Tensor | None,
    topk: float,
    block_q: int,
    block_k: int,
    feature_map: str,
    pv: str,
) -> Tensor:
    if blocks is None:
        blocks = select_blocks(q_BLND, k_BLND, topk=topk, block_q=block_q, block_k=block_k)
    k_smooth = smoothed(k_BLND, column_mean(k_BLND))
    sparse_BNLD, _ = sparse_branch(q_BLND, k_smooth, v_BLND, blocks, block_q, block_k, pv)
    q_BNLD, k_BNLD, v_BNLD = (x.transpose(1, 2) for x in (q_BLND, k_BLND, v_BLND))
    linear_BNLD = linear_branch(q_BNLD, k_BNLD, v_BNLD, proj_weight, proj_bias, feature_map)
    return (sparse_BNLD + linear_BNLD).to(q_BLND.dtype).transpose(1, 2)


def sparse_branch(
    q_BLND: Tensor,
    k_BSND: Tensor,
    v_BSND: Tensor,
    blocks: Tensor,
    block_q: int,
    block_k: int,
    pv: str,
) -> tuple[Tensor, Tensor]:
    """Output (B, N, L, D) and base-2 LSE (B, N, L), float32; ``k_BSND`` is smoothed already.

    In names, R numbers the B·N·Q query blocks, X the queries and Y the keys of a block.
    """
    b, length, n, d = q_BLND.shape
    size = k_BSND.shape[1]
    q8, scale_q = quantise(q_BLND, block_q)
    k8, scale_k = quantise(k_BSND, block_k)
    v, scale_v = quantise_values(v_BSND, pv)
    q_RXD, scale_q = _cut(q8, block_q).flatten(0, 2), scale_q.flatten()
    k_RYD, scale_k = _cut(k8, block_k).flatten(0, 2), scale_k.flatten()
    v_RYD = _cut(v, block_k).flatten(0, 2)
    scale_q = scale_q * (d**-0.5 * math.log2(math.e))
    key_blocks = -(-size // block_k)
    # One row per key block of every head, so that one index selects head and block.
    head = torch.arange(b * n, device=blocks.device).view(b, n, 1, 1) * key_blocks
    blocks = blocks.roll(1, -1)  # the last one first
    rows_RJ = (blocks + head).flatten(0, 2)
    place_RJ = blocks.flatten(0, 2) * block_k

    step = max(1, SCORES_AT_A_TIME // (block_q * block_k))
    outs, lses = [], []
    for start in range(0, rows_RJ.shape[0], step):
        part = slice(start, start + step)
        m = q_RXD.new_full((*q_RXD[part].shape[:2], 1), float("-inf"))
        total, out = torch.zeros_like(m), torch.zeros_like(q_RXD[part])
        for row_R, place_R in zip(rows_RJ[part].unbind(1), place_RJ[part].unbind(1), strict=True):
            scale_R11 = (scale_q[part] * scale_k[row_R])[:, None, None]
            t_RXY = (q_RXD[part] @ k_RYD[row_R].mT) * scale_R11
            if size % block_k:
                beyond_RY = place_R[:, None] + torch.arange(block_k, device=t_RXY.device) >= size
                t_RXY = t_RXY.masked_fill(beyond_RY[:, None], float("-inf"))
            top = torch.maximum(m, t_RXY.amax(-1, keepdim=True))
            shrink = torch.exp2(m - top)
            p_RXY = torch.exp2(t_RXY - top + (E4M3_OFFSET if pv == "fp8" else 0.0))
            rounded = narrow(p_RXY, pv)
            summed = p_RXY if pv == "fp8" else rounded
            total = total * shrink + summed.sum(-1, keepdim=True)
            out = torch.baddbmm(out * shrink, rounded, v_RYD[row_R])
            m = top
        outs.append(out / total)
        lses.append((m + total.log2()).squeeze(-1))
    lse = torch.cat(lses) - (E4M3_OFFSET if pv == "fp8" else 0.0)
    out_BNLD = torch.cat(outs).view(b, n, -1, d)[:, :, :length] * scale_v
    return out_BNLD, lse.view(b, n, -1)[:, :, :length]


def _cut(x_BNLD: Tensor, block: int) -> Tensor:
    """Zero-pad to whole blocks: (B, N, blocks, block, D)."""
    return F.pad(x_BNLD, (0, 0, 0, -x_BNLD.shape[2] % block)).unflatten(2, (-1, block))
