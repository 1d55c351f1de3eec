"""Definition of SLA with a full L×L mask, in float32."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
LOG2_E = math.log2(math.e)


def block_scores(q_BLND: Tensor, k_BLND: Tensor, block_q: int, block_k: int) -> Tensor:
    """Scores (B, N, query blocks, key blocks), float32, of block means rounded as the inputs."""
    mean_B1ND = k_BLND.float().mean(1, keepdim=True).to(k_BLND.dtype)
    smooth_BLND = (k_BLND.float() - mean_B1ND.float()).to(k_BLND.dtype)
    return torch.einsum(
        "bqnd,bknd->bnqk", _means(q_BLND, block_q).float(), _means(smooth_BLND, block_k).float()
    )


def top_blocks(scores_BNQK: Tensor, kept: int) -> Tensor:
    """Indices int64 (B, N, Q, kept) of the highest scores, ascending, ties to the lower index."""
    order = scores_BNQK.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :kept].sort(dim=-1).values


def listed(blocks: Tensor, counts: Tensor | None, key_blocks: int) -> Tensor:
    """Lists as a bool map (B, N, Q, key blocks); what lies past a row's count is not in it."""
    index = blocks.long()
    if counts is not None:  # to a column that is then dropped
        within = torch.arange(blocks.shape[-1], device=blocks.device) < counts[..., None]
        index = torch.where(within, index, key_blocks)
    shape = *blocks.shape[:-1], key_blocks + 1
    return torch.zeros(shape, dtype=torch.bool, device=blocks.device).scatter(-1, index, True)[
        ..., :key_blocks
    ]


def sparse_attention(
    q_BLND: Tensor,
    k_BSND: Tensor,
    v_BSND: Tensor,
    blocks: Tensor,
    block_q: int,
    block_k: int,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The sparse branch alone, (B, L, N, D), and its log-sum-exp, base 2, float32 (B, N, L).

    Keys may be fewer than queries, as one process of several holds them. A query without any
    block gets zero and -inf: the neutral element of ``ops.attention.merge``.
    """
    length, keys = q_BLND.shape[1], k_BSND.shape[1]
    kept_BNQK = listed(blocks, counts, -(-keys // block_k))
    kept_BNLS = kept_BNQK.repeat_interleave(block_q, 2)[:, :, :length]
    kept_BNLS = kept_BNLS.repeat_interleave(block_k, 3)[..., :keys]
    score_BNLS = torch.einsum("blnd,bsnd->bnls", q_BLND.float(), k_BSND.float())
    score_BNLS = score_BNLS * q_BLND.shape[3] ** -0.5
    score_BNLS = score_BNLS.masked_fill(~kept_BNLS, float("-inf"))
    lse_BNL = score_BNLS.logsumexp(-1)
    some_BNL1 = kept_BNLS.any(-1, keepdim=True)
    p_BNLS = torch.where(some_BNL1, score_BNLS, 0.0).softmax(-1) * some_BNL1
    out_BLND = torch.einsum("bnls,bsnd->blnd", p_BNLS, v_BSND.float())
    return out_BLND.to(q_BLND.dtype), lse_BNL * LOG2_E


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
    v = v_BLND.float()
    sparse_BLND, _ = sparse_attention(
        q_BLND.float(), k_BLND.float(), v, blocks, block_q, block_k, counts
    )
    phi_q = feature(q_BLND, feature_map).float()
    phi_k = feature(k_BLND, feature_map).float()
    weight_BNLS = torch.einsum("blnd,bsnd->bnls", phi_q, phi_k)
    weight_BNLS = weight_BNLS / (EPS + weight_BNLS.sum(-1, keepdim=True))
    linear_BLND = torch.einsum("bnls,bsnd->blnd", weight_BNLS, v)
    out_BLND = sparse_BLND + linear_BLND @ proj_weight.float().mT + proj_bias.float()
    return out_BLND.to(q_BLND.dtype)


def feature(x: Tensor, name: str) -> Tensor:
    """The feature map φ over the head width, in float32, kept in the dtype of ``x``."""
    z = x.float()
    if name == "softmax":
        return z.softmax(-1).to(x.dtype)
    return (F.elu(z) + 1 if name == "elu" else F.relu(z)).to(x.dtype)


def _means(x_BLND: Tensor, block: int) -> Tensor:
    """Mean of each block of tokens; a short last block is divided by its true length."""
    return torch.stack([part.float().mean(1) for part in x_BLND.split(block, 1)], 1).to(x_BLND)
