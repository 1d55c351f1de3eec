"""The linear branch of SLA and its projection, for any device.

The projection is applied to the state, and the key sum is one more column of it: one product for
the queries instead of three. Tokens are the second last axis; what stands before it is batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turbodiffusion.ops.sla import naive


def linear_branch(
    q: Tensor, k: Tensor, v: Tensor, proj_weight: Tensor, proj_bias: Tensor, feature_map: str
) -> Tensor:
    """``o_l W_lᵀ + b_l`` of the operator, (…, L, D) float32."""
    return query_side(q, state(k, v, proj_weight, feature_map), proj_bias, feature_map)


def state(k: Tensor, v: Tensor, proj_weight: Tensor, feature_map: str) -> Tensor:
    """``φ(k)ᵀ v W_lᵀ`` and, as the last column, ``Σ φ(k)``: (…, D, D + 1) float32."""
    phi = _feature(k, feature_map).float()
    product = phi.mT @ v.float() @ proj_weight.float().mT
    return torch.cat([product, phi.sum(-2).unsqueeze(-1)], -1)


def query_side(q: Tensor, state: Tensor, proj_bias: Tensor, feature_map: str) -> Tensor:
    """What the queries read from a :func:`state`, (…, L, D) float32."""
    both = _feature(q, feature_map).float() @ state
    return torch.addcdiv(proj_bias.float(), both[..., :-1], both[..., -1:] + naive.EPS)


def _feature(x: Tensor, name: str) -> Tensor:
    """φ as in ``naive``; PyTorch's softmax computes in float32 and rounds once by itself."""
    return x.softmax(-1) if name == "softmax" else naive.feature(x, name)
