"""Dense attention by PyTorch's fused kernels (flash, memory-efficient, CPU flash)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attention(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor) -> Tensor:
    out_BNLD = F.scaled_dot_product_attention(
        q_BLND.transpose(1, 2), k_BSND.transpose(1, 2), v_BSND.transpose(1, 2)
    )
    return out_BNLD.transpose(1, 2)
