"""Joins attention over parts of the keys, as processes that share one sequence hold them.

Softmax attention over all keys is a mean of its parts, weighted by ``2^LSE``. A part without keys
(output 0, LSE -inf) changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge(outs_BLND: Sequence[Tensor], lses_BNL: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over the union of disjoint sets of keys, and its log-sum-exp.

    Args:
        outs_BLND: the output of each part, any float dtype.
        lses_BNL: its base-2 log-sum-exp, float32 (B, N, L).

    Returns:
        Output in the dtype of the parts, and LSE float32. Differentiable.
    """
    lse_PBNL = torch.stack(list(lses_BNL)).float()
    top_BNL = lse_PBNL.amax(0).clamp(min=torch.finfo(torch.float32).min)  # -inf would give NaN
    weight_PBNL = torch.exp2(lse_PBNL - top_BNL)
    total_BNL = weight_PBNL.sum(0)
    share_PBLN1 = (weight_PBNL / total_BNL.clamp(min=1e-38)).transpose(2, 3).unsqueeze(-1)
    out_BLND = (torch.stack(list(outs_BLND)).float() * share_PBLN1).sum(0)
    return out_BLND.to(outs_BLND[0].dtype), top_BNL + total_BNL.log2()
