"""Definition of the attention tangent: whole score matrices in float32, or the input's float64."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def attention_tangent(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor, tk: Tensor | None, tv: Tensor | None
) -> tuple[Tensor, Tensor]:
    dtype, scale = q.dtype, q.shape[-1] ** -0.5
    work = torch.float64 if dtype is torch.float64 else torch.float32
    tk = torch.zeros_like(k) if tk is None else tk
    tv = torch.zeros_like(v) if tv is None else tv
    q, k, v, tq, tk, tv = (x.to(work) for x in (q, k, v, tq, tk, tv))
    scores_BNLS = torch.einsum("blnd,bsnd->bnls", q, k) * scale
    moved_BNLS = scale * (
        torch.einsum("blnd,bsnd->bnls", tq, k) + torch.einsum("blnd,bsnd->bnls", q, tk)
    )
    p_BNLS = scores_BNLS.softmax(-1)
    h_BNLS = p_BNLS * moved_BNLS
    o_BLND = torch.einsum("bnls,bsnd->blnd", p_BNLS, v)
    to_BLND = torch.einsum("bnls,bsnd->blnd", p_BNLS, tv)
    to_BLND += torch.einsum("bnls,bsnd->blnd", h_BNLS, v)
    to_BLND -= h_BNLS.sum(-1).transpose(1, 2)[..., None] * o_BLND
    return o_BLND.to(dtype), to_BLND.to(dtype)
