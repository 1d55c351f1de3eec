"""Attention and its tangent in one stream over the keys.

A tile of queries keeps the running maximum m, the sums ℓ = Σ P and r = Σ H, and two accumulators,
P v and P tv + H v; all are scaled by 2^(m_old − m_new) when the maximum grows. At the end
o = (P v)/ℓ and to = (P tv + H v)/ℓ − (r/ℓ)·o. The softmax runs in base 2; H = P∘tS needs tS itself,
so its products are scaled by 1/√D. Sums and products are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_pointer(x, i_b, i_n, o_row, x_b, x_l, x_n, D: tl.constexpr):
    """Pointers [rows, D] into a (B, tokens, N, D) tensor."""
    p_x = x + i_b * x_b + i_n * x_n
    return p_x + o_row[:, None].to(tl.int64) * x_l + tl.arange(0, D)[None, :]


@triton.jit
def tangent_kernel(
    q, k, v, tq, tk, tv, o, to,
    scale, scale_moved, L, S, N,
    q_b, q_l, q_n, k_b, k_l, k_n, v_b, v_l, v_n,
    tq_b, tq_l, tq_n, tk_b, tk_l, tk_n, tv_b, tv_l, tv_n, o_b, o_l, o_n,
    D: tl.constexpr, TILE_Q: tl.constexpr, TILE_K: tl.constexpr, KEYS_MOVE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of queries, B·N). ``scale`` is log2(e)/√D, ``scale_moved`` 1/√D.

    Without ``KEYS_MOVE`` the tangents of keys and values are zero and not read. ``o`` and ``to``
    share their strides.
    """
    i_bn = tl.program_id(1)
    i_b, i_n = (i_bn // N).to(tl.int64), (i_bn % N).to(tl.int64)
    o_q = tl.program_id(0) * TILE_Q + tl.arange(0, TILE_Q)
    m_q = (o_q < L)[:, None]
    # [TILE_Q, D]
    b_q = tl.load(rows_pointer(q, i_b, i_n, o_q, q_b, q_l, q_n, D), mask=m_q, other=0.0)
    b_tq = tl.load(rows_pointer(tq, i_b, i_n, o_q, tq_b, tq_l, tq_n, D), mask=m_q, other=0.0)
    b_m = tl.full((TILE_Q,), -1e30, tl.float32)
    b_l = tl.zeros((TILE_Q,), tl.float32)
    b_r = tl.zeros((TILE_Q,), tl.float32)
    b_o = tl.zeros((TILE_Q, D), tl.float32)
    b_to = tl.zeros((TILE_Q, D), tl.float32)
    for first in range(0, S, TILE_K):
        o_k = first + tl.arange(0, TILE_K)
        m_k = o_k < S
        # [TILE_K, D]
        b_k = tl.load(
            rows_pointer(k, i_b, i_n, o_k, k_b, k_l, k_n, D), mask=m_k[:, None], other=0.0
        )
        b_v = tl.load(
            rows_pointer(v, i_b, i_n, o_k, v_b, v_l, v_n, D), mask=m_k[:, None], other=0.0
        )
        # [TILE_Q, TILE_K]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        b_ts = tl.dot(b_tq, tl.trans(b_k), input_precision=PRECISION)
        if KEYS_MOVE:
            b_tk = tl.load(
                rows_pointer(tk, i_b, i_n, o_k, tk_b, tk_l, tk_n, D), mask=m_k[:, None], other=0.0
            )
            b_ts = tl.dot(b_q, tl.trans(b_tk), b_ts, input_precision=PRECISION)
        b_s = tl.where(m_k[None, :], b_s * scale, float("-inf"))
        b_new = tl.maximum(b_m, tl.max(b_s, 1))
        b_p = tl.exp2(b_s - b_new[:, None])
        b_h = b_p * (b_ts * scale_moved)
        b_a = tl.exp2(b_m - b_new)
        b_m = b_new
        b_l = b_l * b_a + tl.sum(b_p, 1)
        b_r = b_r * b_a + tl.sum(b_h, 1)
        b_p = b_p.to(b_v.dtype)
        b_o = tl.dot(b_p, b_v, b_o * b_a[:, None], input_precision=PRECISION)
        b_to = tl.dot(b_h.to(b_v.dtype), b_v, b_to * b_a[:, None], input_precision=PRECISION)
        if KEYS_MOVE:
            b_tv = tl.load(
                rows_pointer(tv, i_b, i_n, o_k, tv_b, tv_l, tv_n, D), mask=m_k[:, None], other=0.0
            )
            b_to = tl.dot(b_p, b_tv, b_to, input_precision=PRECISION)
    b_o = b_o / b_l[:, None]
    b_to = b_to / b_l[:, None] - (b_r / b_l)[:, None] * b_o
    element = o.dtype.element_ty
    tl.store(rows_pointer(o, i_b, i_n, o_q, o_b, o_l, o_n, D), b_o.to(element), mask=m_q)
    tl.store(rows_pointer(to, i_b, i_n, o_q, o_b, o_l, o_n, D), b_to.to(element), mask=m_q)
