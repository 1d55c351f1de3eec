"""SLA by gathering: each query block meets a small dense attention over its own key blocks.

Work is proportional to the kept share. On a CPU everything happens slice by slice, see
:mod:`.on_cpu`. Elsewhere the kept key and value blocks of many query blocks are copied side by side
and PyTorch's fused attention runs on them, a batch entry per query block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbodiffusion.ops import cpu
from turbodiffusion.ops.attention.portable import fused_attention
from turbodiffusion.ops.sla import naive, on_cpu
from turbodiffusion.ops.sla.cut import Cut
from turbodiffusion.ops.sla.linear import linear_branch
from turbodiffusion.ops.sla.naive import sparse_attention

__all__ = ["block_scores", "sparse_attention", "sparse_linear_attention", "top_blocks"]

GATHERED_ELEMENTS = 1 << 26  # of keys, and as many of values, copied at a time
# On a CPU, by a thread at a time: fewer are not worth another thread.
SUMMED_ELEMENTS = 1 << 20
SORTED_ELEMENTS = 1 << 15


def block_scores(q_BLND: Tensor, k_BLND: Tensor, block_q: int, block_k: int) -> Tensor:
    length, dtype = k_BLND.shape[1], k_BLND.dtype
    q_BQND, k_BKND = _sums(q_BLND, block_q), _sums(k_BLND, block_k)
    mean_B1ND = (k_BKND.sum(1, keepdim=True) / length).to(dtype)
    smooth_BKND = _sums(k_BLND, block_k, mean_B1ND)
    q_BNQD = (q_BQND / _counts(q_BLND, block_q)).to(dtype).float().transpose(1, 2)
    k_BNKD = (smooth_BKND / _counts(k_BLND, block_k)).to(dtype).float().transpose(1, 2)
    return q_BNQD @ k_BNKD.mT


def top_blocks(scores_BNQK: Tensor, kept: int) -> Tensor:
    if not on_cpu.runs(scores_BNQK):
        return naive.top_blocks(scores_BNQK, kept)
    rows = scores_BNQK.flatten(0, 2)
    parts = rows.split(max(1, SORTED_ELEMENTS // rows.shape[1]))
    found = cpu.collect(lambda part: naive.top_blocks(part, kept), parts)
    return torch.cat(found).view(*scores_BNQK.shape[:-1], kept)


def _sums(x_BLND: Tensor, block: int, minus_B1ND: Tensor | None = None) -> Tensor:
    """Sum of each block of tokens, (B, blocks, N, D) float32, of ``x`` or ``x - minus`` rounded."""

    def sums(part_BLND: Tensor) -> Tensor:
        if minus_B1ND is not None:
            part_BLND = part_BLND - minus_B1ND
        padded = F.pad(part_BLND.float(), (0, 0, 0, 0, 0, -part_BLND.shape[1] % block))
        return padded.unflatten(1, (-1, block)).sum(2)

    if not on_cpu.runs(x_BLND):
        return sums(x_BLND)
    step = max(1, SUMMED_ELEMENTS // (block * x_BLND[:, 0].numel()))
    return torch.cat(cpu.collect(sums, x_BLND.split(step * block, 1)), 1)


def _counts(x_BLND: Tensor, block: int) -> Tensor:
    """Tokens of each block, (blocks, 1, 1)."""
    length = x_BLND.shape[1]
    start = torch.arange(0, length, block, device=x_BLND.device)
    return (length - start).clamp(max=block).view(-1, 1, 1)


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
    inputs = q_BLND, k_BLND, v_BLND, proj_weight, proj_bias
    cut = Cut.of(blocks, counts, block_q, block_k, q_BLND.shape[1])
    if on_cpu.runs(q_BLND):
        return on_cpu.sparse_linear_attention(*inputs, cut, feature_map)
    sparse_BNLD = _sparse(q_BLND, k_BLND, v_BLND, cut)
    q, k, v = (x.transpose(1, 2) for x in inputs[:3])
    joined_BNLD = linear_branch(q, k, v, proj_weight, proj_bias, feature_map)
    return (joined_BNLD + sparse_BNLD).to(q_BLND.dtype).transpose(1, 2)


def _sparse(q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor, cut: Cut) -> Tensor:
    """The sparse branch, (B, N, L, D). In names, R numbers the B·N·Q query blocks."""
    b, length, n, d = q_BLND.shape
    q_RXD = _cut(q_BLND, cut.block_q).flatten(0, 2)
    # One row per key block of every head, so that one index selects head and block.
    k_rows, v_rows = (_cut(x, cut.block_k).flatten(0, 2).flatten(1) for x in (k_BLND, v_BLND))
    head_H11 = torch.arange(b * n, device=q_BLND.device).view(-1, 1, 1) * (len(k_rows) // (b * n))
    rows_RJ = (cut.blocks_HRJ + head_H11).flatten(0, 1)
    shown_RS = None if cut.hidden_HRS is None else ~cut.hidden_HRS.flatten(0, 1)
    step = max(1, GATHERED_ELEMENTS // (rows_RJ.shape[1] * cut.block_k * d))
    parts = []
    for start in range(0, len(rows_RJ), step):
        part = slice(start, start + step)
        k_RSD, v_RSD = (
            rows.index_select(0, rows_RJ[part].flatten()).view(len(rows_RJ[part]), 1, -1, d)
            for rows in (k_rows, v_rows)
        )
        mask = None if shown_RS is None else shown_RS[part, None, None]
        parts.append(fused_attention(q_RXD[part, None], k_RSD, v_RSD, mask=mask)[:, 0])
    return torch.cat(parts).view(b, n, -1, d)[:, :, :length]


def _cut(x_BLND: Tensor, block: int) -> Tensor:
    """Zero-pad to whole blocks: (B, N, blocks, block, D)."""
    padded = F.pad(x_BLND, (0, 0, 0, 0, 0, -x_BLND.shape[1] % block))
    return padded.unflatten(1, (-1, block)).permute(0, 3, 1, 2, 4)
