"""Definition of dense attention: scores, softmax and sum in float32, one rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor) -> Tensor:
    scale = q_BLND.shape[-1] ** -0.5
    scores_BNLS = torch.einsum("blnd,bsnd->bnls", q_BLND.float(), k_BSND.float()) * scale
    out_BLND = torch.einsum("bnls,bsnd->blnd", scores_BNLS.softmax(-1), v_BSND.float())
    return out_BLND.to(q_BLND.dtype)
