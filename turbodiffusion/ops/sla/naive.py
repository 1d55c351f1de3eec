"""Definition of SLA with a full L×L mask, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5


def block_scores(q_BLND: Tensor, k_BLND: Tensor, block_q: int, block_k: int) -> Tensor:
    """Scores (B, N, query blocks, key blocks), float32, of block means rounded as the inputs."""
    mean_B1ND = k_BLND.float().mean(1, keepdim=True).to(k_BLND.dtype)
    smooth_BLND = (k_BLND.float() - mean_B1ND.float()).to(k_BLND.dtype)
    return torch.einsum(
        "bqnd,bknd->bnqk", _means(q_BLND, block_q).float(), _means(smooth_BLND, block_k).float()
    )


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
) -> Tensor:
    length, width = q_BLND.shape[1], q_BLND.shape[3]
    kept_BNQK = torch.zeros(
        *blocks.shape[:-1], -(-length // block_k), dtype=torch.bool, device=blocks.device
    ).scatter(-1, blocks, True)
    kept_BNLS = kept_BNQK.repeat_interleave(block_q, 2)[:, :, :length]
    kept_BNLS = kept_BNLS.repeat_interleave(block_k, 3)[..., :length]

    q, k, v = q_BLND.float(), k_BLND.float(), v_BLND.float()
    score_BNLS = torch.einsum("blnd,bsnd->bnls", q, k) * width**-0.5
    p_BNLS = score_BNLS.masked_fill(~kept_BNLS, float("-inf")).softmax(-1)
    sparse_BLND = torch.einsum("bnls,bsnd->blnd", p_BNLS, v)

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
