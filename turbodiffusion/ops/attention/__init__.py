"""Dense attention, the form that every token attends to every key.

``softmax(q kᵀ / √D) v`` per head, not causal, no mask. Used for cross-attention always and for
self-attention of networks that were not fine-tuned for sparsity.
"""

from __future__ import annotations

from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.ops import backend, dual
from turbodiffusion.ops.tangent import dual_attention


def attention(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor) -> Tensor:
    """Attend from L queries to S keys.

    Args:
        q_BLND: queries, batch × tokens × heads × head width, any float dtype.
        k_BSND: keys of the same dtype; ``v_BSND`` the values.

    Returns:
        (B, L, N, D) in the dtype of the queries. Differentiable.

    Raises:
        UsageError: the shapes do not belong together.
    """
    if k_BSND.shape != v_BSND.shape or q_BLND.shape[::2] != k_BSND.shape[::2] or (
        q_BLND.shape[3] != k_BSND.shape[3]
    ):  # fmt: skip
        raise UsageError(
            "ops-attention-shape",
            f"Attention got q {tuple(q_BLND.shape)}, k {tuple(k_BSND.shape)}, "
            f"v {tuple(v_BSND.shape)}; k and v must be alike and share B, N and D with q.",
            "Give tensors laid out as (batch, tokens, heads, head width).",
        )
    if dual.streams():
        return dual_attention(q_BLND, k_BSND, v_BSND)
    return backend.form("attention", q_BLND.device).attention(q_BLND, k_BSND, v_BSND)
