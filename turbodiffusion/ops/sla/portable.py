"""SLA by gathering: each query block meets a small dense attention over its own key blocks.

The kept key and value blocks of a query block are copied side by side and PyTorch's fused
attention runs on them, a batch entry per query block. Work is proportional to the kept share. The
copies are made for a bounded number of query blocks at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbodiffusion.ops.attention.portable import fused_attention
from turbodiffusion.ops.sla.naive import EPS, feature, sparse_attention, top_blocks

__all__ = ["block_scores", "sparse_attention", "sparse_linear_attention", "top_blocks"]

GATHERED_ELEMENTS = 1 << 26  # of keys, and as many of values, copied at a time
GATHERED_ON_CPU = 1 << 23  # there into one buffer: memory new for every copy costs page faults


def block_scores(q_BLND: Tensor, k_BLND: Tensor, block_q: int, block_k: int) -> Tensor:
    dtype = q_BLND.dtype
    smooth_BLND = k_BLND - k_BLND.mean(1, keepdim=True, dtype=torch.float32).to(dtype)
    q_BNQD = _means(q_BLND, block_q).to(dtype).transpose(1, 2).float()
    return q_BNQD @ _means(smooth_BLND, block_k).to(dtype).transpose(1, 2).float().mT


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
    sparse_BNLD = _sparse(q_BLND, k_BLND, v_BLND, blocks, block_q, block_k, counts)
    joined_BNLD = (
        linear_branch(q_BLND, k_BLND, v_BLND, proj_weight, feature_map) + proj_bias.float()
    )
    return (sparse_BNLD.float() + joined_BNLD).to(q_BLND.dtype).transpose(1, 2)


def linear_branch(
    q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor, proj_weight: Tensor, feature_map: str
) -> Tensor:
    """The linear branch and its projection, (B, N, L, D) float32.

    The projection is applied to the state, and the key sum is one more column of it: one product
    for the queries instead of three.
    """
    phi_q = feature(q_BLND, feature_map).transpose(1, 2).float()
    phi_k = feature(k_BLND, feature_map).transpose(1, 2).float()
    state_BNDD = (phi_k.mT @ v_BLND.transpose(1, 2).float()) @ proj_weight.float().mT
    both = phi_q @ torch.cat([state_BNDD, phi_k.sum(2).unsqueeze(-1)], -1)
    return both[..., :-1] / (EPS + both[..., -1:])


def _sparse(
    q_BLND: Tensor,
    k_BLND: Tensor,
    v_BLND: Tensor,
    blocks: Tensor,
    block_q: int,
    block_k: int,
    counts: Tensor | None = None,
) -> Tensor:
    """The sparse branch, (B, N, L, D). In names, R numbers the B·N·Q query blocks."""
    b, length, n, d = q_BLND.shape
    kept = blocks.shape[-1]
    q_RXD = _cut(q_BLND, block_q).flatten(0, 2)
    k_blocks, v_blocks = _cut(k_BLND, block_k), _cut(v_BLND, block_k)
    key_blocks = k_blocks.shape[2]
    # One row per key block of every head, so that one index selects head and block.
    k_rows, v_rows = k_blocks.reshape(-1, block_k * d), v_blocks.reshape(-1, block_k * d)
    head = torch.arange(b * n, device=blocks.device).view(b, n, 1, 1) * key_blocks
    if counts is not None:  # what lies past a count is no index; block 0 stands for it
        place_J = torch.arange(kept, device=blocks.device)
        blocks = torch.where(place_J < counts[..., None], blocks, 0)
    rows_RJ = (blocks + head).flatten(0, 2)
    mask_RS = None
    if length % block_k or counts is not None:
        position_RJS = blocks.flatten(0, 2).unsqueeze(-1) * block_k
        position_RJS = position_RJS + torch.arange(block_k, device=blocks.device)
        mask_RJS = position_RJS < length
        if counts is not None:
            place_J = torch.arange(kept, device=blocks.device)
            mask_RJS &= (place_J < counts.flatten()[:, None])[..., None]
        mask_RS = mask_RJS.flatten(1)

    on_cpu = q_BLND.device.type == "cpu"
    if on_cpu:  # as fused_attention would, but before keys and values are copied
        k_rows, v_rows = k_rows.float(), v_rows.float()
    step = max(1, (GATHERED_ON_CPU if on_cpu else GATHERED_ELEMENTS) // (kept * block_k * d))
    step = min(step, q_RXD.shape[0])
    buffers: tuple[Tensor | None, Tensor | None] = None, None
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in (q_RXD, k_rows, v_rows))):
        shape = step * kept, block_k * d
        buffers = k_rows.new_empty(shape), v_rows.new_empty(shape)
    parts = []
    for start in range(0, q_RXD.shape[0], step):
        chosen = rows_RJ[start : start + step]
        k_RSD, v_RSD = (
            torch.index_select(
                rows, 0, chosen.flatten(), out=None if into is None else into[: chosen.numel()]
            ).view(chosen.shape[0], 1, kept * block_k, d)
            for rows, into in zip((k_rows, v_rows), buffers, strict=True)
        )
        mask = None if mask_RS is None else mask_RS[start : start + step, None, None]
        out = fused_attention(q_RXD[start : start + step, None], k_RSD, v_RSD, mask=mask)
        parts.append(out[:, 0])
    return torch.cat(parts).view(b, n, -1, d)[:, :, :length]


def _cut(x_BLND: Tensor, block: int) -> Tensor:
    """Zero-pad to whole blocks: (B, N, blocks, block, D)."""
    padded = F.pad(x_BLND, (0, 0, 0, 0, 0, -x_BLND.shape[1] % block))
    return padded.unflatten(1, (-1, block)).permute(0, 3, 1, 2, 4)


def _means(x_BLND: Tensor, block: int) -> Tensor:
    """Mean of each block of tokens, (B, blocks, N, D) float32."""
    length = x_BLND.shape[1]
    padded = F.pad(x_BLND, (0, 0, 0, 0, 0, -length % block)).unflatten(1, (-1, block))
    start = torch.arange(0, length, block, device=x_BLND.device)
    count = (length - start).clamp(max=block).view(1, -1, 1, 1)
    return padded.sum(2, dtype=torch.float32) / count
