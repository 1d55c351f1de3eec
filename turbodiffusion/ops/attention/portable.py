"""Dense attention by PyTorch's fused kernels (flash, memory-efficient, CPU flash)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attention(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor) -> Tensor:
    out_BNLD = fused_attention(
        q_BLND.transpose(1, 2), k_BSND.transpose(1, 2), v_BSND.transpose(1, 2)
    )
    return out_BNLD.transpose(1, 2)


def fused_attention(
    q_BNLD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Attention with heads before tokens; ``mask`` is True where a key may be seen.

    On a CPU half-precision operands are cast up first. Its bf16 kernel rounds the softmax to bf16,
    which alone moves a network's output by 0.35 %, and it is slower: 2304 tokens, 4 heads of 64
    take 333 ms a call against 288 ms, 1.41 s against 0.57 s with the backward pass (one core).
    """
    dtype = q_BNLD.dtype
    if q_BNLD.device.type == "cpu":
        q_BNLD, k_BNSD, v_BNSD = q_BNLD.float(), k_BNSD.float(), v_BNSD.float()
    return F.scaled_dot_product_attention(q_BNLD, k_BNSD, v_BNSD, attn_mask=mask).to(dtype)
