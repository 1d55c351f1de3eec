"""Dense attention together with its derivative along a direction (JVP).

With S = q kᵀ/√D, P = softmax S, tS = (tq kᵀ + q tkᵀ)/√D and H = P∘tS, of each head

    o  = P v
    to = P tv + H v − rowsum(H)·o

One pass over the keys makes both, with six products instead of two. Nothing is differentiable
again: it serves losses that take the derivative as a constant.
"""

from __future__ import annotations

from torch import Tensor
from torch.autograd import forward_ad

from turbodiffusion.errors import UsageError
from turbodiffusion.ops import backend

Pair = tuple[Tensor, Tensor]


def attention_tangent(
    q_BLND: Tensor,
    k_BSND: Tensor,
    v_BSND: Tensor,
    tq_BLND: Tensor,
    tk_BSND: Tensor | None = None,
    tv_BSND: Tensor | None = None,
) -> Pair:
    """Value and tangent of attention from L queries to S keys.

    Args:
        q_BLND, k_BSND, v_BSND: as in :func:`turbodiffusion.ops.attention.attention`.
        tq_BLND: tangent of the queries; ``tk_BSND`` and ``tv_BSND`` those of keys and values, both
            or neither. None stands for zero, as in attention to the text, and saves two products.

    Returns:
        (o, to), each (B, L, N, D) in the dtype of the queries, without graph.

    Raises:
        UsageError: the shapes do not belong together.
    """
    q, k, v = q_BLND, k_BSND, v_BSND
    fits = k.shape == v.shape and q.shape[::2] == k.shape[::2] and q.shape[3] == k.shape[3]
    tangents = tq_BLND.shape == q.shape and (tk_BSND is None) is (tv_BSND is None)
    if tk_BSND is not None and tv_BSND is not None:
        tangents = tangents and tk_BSND.shape == tv_BSND.shape == k.shape
    if not (fits and tangents):
        shapes = [None if x is None else tuple(x.shape) for x in (q, k, v, tq_BLND, tk_BSND)]
        raise UsageError(
            "ops-tangent-shape",
            f"The attention tangent got q, k, v, tq, tk of shapes {shapes}.",
            "Give k and v alike, tangents as their values, and tk and tv both or neither.",
        )
    return backend.form("tangent", q.device).attention_tangent(q, k, v, tq_BLND, tk_BSND, tv_BSND)


def dual_attention(q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor) -> Tensor:
    """Attention of dual numbers; the result is dual if an input is."""
    (q, tq), (k, tk), (v, tv) = (forward_ad.unpack_dual(x) for x in (q_BLND, k_BSND, v_BSND))
    if tq is None and tk is None and tv is None:
        return attention(q, k, v)
    tq = q.new_zeros(q.shape) if tq is None else tq
    if tk is not None or tv is not None:
        tk = k.new_zeros(k.shape) if tk is None else tk
        tv = v.new_zeros(v.shape) if tv is None else tv
    return forward_ad.make_dual(*attention_tangent(q, k, v, tq, tk, tv))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention, for inputs of a dual pass that carry no tangent."""
    return backend.form("attention", q.device).attention(q, k, v)
