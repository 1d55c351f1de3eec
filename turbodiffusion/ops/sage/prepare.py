"""Kernels that read queries, keys and values once each and leave what the attention kernel needs.

``quantise_kernel`` reads keys and values together, whose mean and largest values a pooling pass
has found: smoothed int8 keys with a scale per block, values in the format of the second product,
and the state of the linear branch. ``query_kernel`` reads queries: int8 with a scale per block,
block means, and the whole linear branch, which only depends on the query and that state.

Shapes in comments: L tokens, D head width, BK keys of a block.
"""

from __future__ import annotations

import triton
import triton.language as tl

from turbodiffusion.ops.attention.forward import feature_tile
from turbodiffusion.ops.linear.quantize_kernels import ROUNDING


@triton.jit
def integers(x, dtype: tl.constexpr):
    """The nearest whole numbers of float32 |x| ≤ 127 as int8, or in bf16, where they are exact.

    Halves go to even; the definition has them away from zero, which is a step on a tie. An addition
    does it, while a conversion to integers has the speed of an exponential.
    """
    x = x + ROUNDING
    if dtype == tl.int8:
        return x.to(tl.int32, bitcast=True).to(tl.int8)
    else:
        return (x - ROUNDING).to(dtype)


@triton.jit
def place(o_k):
    """Where a key is stored beside e4m3 values: of 16 keys [t, a, b] the row [a, t, b], in bits.

    A thread of the matrix instructions then holds the scores of just the keys whose probabilities
    its part of the second product wants. :func:`key_at` is the inverse.
    """
    return (o_k & ~15) | ((o_k & 2) << 2) | ((o_k & 12) >> 1) | (o_k & 1)


@triton.jit
def key_at(o_c):
    """The key at a place, see :func:`place`."""
    return (o_c & ~15) | ((o_c & 6) << 1) | ((o_c & 8) >> 2) | (o_c & 1)


@triton.jit
def quantise_kernel(
    p_k, p_v, p_mean, p_v_scale, p_k8, p_k_scale, p_vq, p_state, p_weight,
    stride_kb, stride_kl, stride_kn, stride_vb, stride_vl, stride_vn, S, N, K, PER,
    D: tl.constexpr, BK: tl.constexpr, PV: tl.constexpr, FEATURE: tl.constexpr,
):  # fmt: skip
    """Keys and values of one head, ``PER`` key blocks a program. Grid (B·N, parts).

    Writes int8 keys (B, N, K·BK, D), for e4m3 values in the order of :func:`place`, and their
    scales (B, N, K). ``PV`` is ``keep`` (values are used as they are), ``half`` (cast,
    (B, N, K·BK, D)) or ``fp8`` (scaled by channel, transposed to (B, N, K, D, BK): the matrix
    instruction wants keys side by side). Unless ``FEATURE`` is ``none`` it sums φ(k)ᵀ v and φ(k)
    over its blocks.
    """
    i_bn, i_part = tl.program_id(0), tl.program_id(1)
    i_b, i_n = (i_bn // N).to(tl.int64), (i_bn % N).to(tl.int64)
    i_head = i_bn.to(tl.int64)
    o_d, o_k = tl.arange(0, D), tl.arange(0, BK)
    p_k += i_b * stride_kb + i_n * stride_kn
    p_v += i_b * stride_vb + i_n * stride_vn
    dtype: tl.constexpr = p_k.dtype.element_ty
    b_mean = tl.load(p_mean + i_head * D + o_d).to(tl.float32)
    if PV == "fp8":
        b_v_inverse = 1.0 / tl.load(p_v_scale + i_head * D + o_d)
    b_state = tl.zeros([D, D], tl.float32)
    b_weight = tl.zeros([BK, D], tl.float32)
    for i_k in range(i_part * PER, tl.minimum(i_part * PER + PER, K)):
        o_s = i_k * BK + o_k
        m_s = (o_s < S)[:, None]
        o_row = o_s.to(tl.int64)[:, None]
        b_k = tl.load(p_k + o_row * stride_kl + o_d, mask=m_s, other=0.0)  # [BK, D]
        b_smooth = (b_k.to(tl.float32) - b_mean[None, :]).to(dtype).to(tl.float32)
        b_smooth = tl.where(m_s, b_smooth, 0.0)
        b_scale = tl.max(tl.abs(b_smooth)) / 127 + 1e-7
        b_k8 = integers(b_smooth * (1.0 / b_scale), p_k8.dtype.element_ty)
        o_place = i_k * BK + place(o_k) if PV == "fp8" else o_s
        tl.store(p_k8 + (i_head * K * BK + o_place.to(tl.int64)[:, None]) * D + o_d, b_k8)
        tl.store(p_k_scale + i_head * K + i_k, b_scale)
        if PV != "keep" or FEATURE != "none":
            b_v = tl.load(p_v + o_row * stride_vl + o_d, mask=m_s, other=0.0)  # [BK, D]
        if PV == "half":
            b_half = tl.clamp(b_v.to(tl.float32), -65504.0, 65504.0).to(p_vq.dtype.element_ty)
            tl.store(p_vq + (i_head * K * BK + o_row) * D + o_d, b_half)
        if PV == "fp8":  # at most V_RANGE: nothing to saturate
            b_v8 = (b_v.to(tl.float32) * b_v_inverse[None, :]).to(p_vq.dtype.element_ty)
            o_v8 = ((i_head * K + i_k) * D + o_d[:, None]) * BK + o_k[None, :]
            tl.store(p_vq + o_v8, tl.trans(b_v8))
        if FEATURE != "none":
            b_phi = tl.where(m_s, feature_tile(b_k.to(tl.float32), FEATURE), 0.0)
            b_weight += b_phi
            b_state = tl.dot(tl.trans(b_phi.to(dtype)), b_v, b_state)
    if FEATURE != "none":
        o_part = i_head * tl.num_programs(1) + i_part
        tl.store(p_state + (o_part * D + o_d[:, None]) * D + o_d[None, :], b_state)
        tl.store(p_weight + o_part * D + o_d, tl.sum(b_weight, 0))


@triton.jit
def query_kernel(
    p_q, p_mean, p_state, p_weight, p_bias, p_q8, p_q_scale, p_q_mean, p_shift, p_out,
    stride_qb, stride_ql, stride_qn, stride_ob, stride_ol, stride_on, L, N, Q, PER, scale,
    D: tl.constexpr, BQ: tl.constexpr, ROWS: tl.constexpr, FEATURE: tl.constexpr,
    POOL: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """``PER`` query blocks of one head: int8 queries (B, N, Q·BQ, D) and their scale (B, N, Q).

    ``POOL`` writes its mean (B, N, Q, D); ``SHIFT`` writes q · mean(k) · ``scale`` (B, N, Q·BQ), by
    which smoothing lowered the row's scores. Unless ``FEATURE`` is ``none`` the linear branch
    φ(q) M / (ε + φ(q)·w) + b is left in the output, where M is the linear state (B, N, D, D) times
    the projection and w the sum of φ(k): one product more in a pass that waits for memory. M is
    loaded once a program. Grid (B·N, parts).
    """
    i_bn, i_part = tl.program_id(0), tl.program_id(1)
    i_b, i_n = (i_bn // N).to(tl.int64), (i_bn % N).to(tl.int64)
    i_head = i_bn.to(tl.int64)
    o_d = tl.arange(0, D)
    dtype: tl.constexpr = p_q.dtype.element_ty
    p_q += i_b * stride_qb + i_n * stride_qn
    if SHIFT:
        b_key = tl.load(p_mean + i_head * D + o_d).to(tl.float32)
    if FEATURE != "none":
        b_weight = tl.load(p_weight + i_head * D + o_d)
        b_bias = tl.load(p_bias + o_d)
        b_m = tl.load(p_state + i_head * D * D + (o_d[:, None] * D + o_d[None, :]))  # [D, D]
        p_out += i_b * stride_ob + i_n * stride_on
    for i_q in range(i_part * PER, tl.minimum(i_part * PER + PER, Q)):
        i_row = i_head * Q + i_q
        # A few rows at a time, read again from the cache where there are more: all of them do not
        # fit in registers beside the state and the product.
        amax = 0.0
        b_sum = tl.zeros([D], tl.float32)
        for i in tl.static_range(BQ // ROWS):
            o_l = i_q * BQ + i * ROWS + tl.arange(0, ROWS)
            p_rows = p_q + o_l.to(tl.int64)[:, None] * stride_ql + o_d
            b_x = tl.load(p_rows, mask=(o_l < L)[:, None], other=0.0)  # [ROWS, D]
            amax = tl.maximum(amax, tl.max(tl.abs(b_x.to(tl.float32))))
            if POOL:
                b_sum += tl.sum(b_x.to(tl.float32), 0)
        scale_q = amax / 127 + 1e-7
        tl.store(p_q_scale + i_row, scale_q)
        if POOL:
            b_mean = b_sum / tl.minimum(L - i_q * BQ, BQ).to(tl.float32)
            tl.store(p_q_mean + i_row * D + o_d, b_mean.to(dtype))
        for i in tl.static_range(BQ // ROWS):
            o_r = i * ROWS + tl.arange(0, ROWS)
            o_l = i_q * BQ + o_r
            o_l64, m_l = o_l.to(tl.int64)[:, None], (o_l < L)[:, None]
            if BQ > ROWS:
                b_x = tl.load(p_q + o_l64 * stride_ql + o_d, mask=m_l, other=0.0)
            b_q = b_x.to(tl.float32)
            b_q8 = integers(b_q * (1.0 / scale_q), p_q8.dtype.element_ty)
            tl.store(p_q8 + i_row * BQ * D + (o_r[:, None] * D + o_d[None, :]), b_q8)
            if SHIFT:
                tl.store(p_shift + i_row * BQ + o_r, tl.sum(b_q * b_key[None, :], 1) * scale)
            if FEATURE != "none":
                b_phi = feature_tile(b_q, FEATURE)
                b_z = 1e-5 + tl.sum(b_phi * b_weight[None, :], 1)
                b_out = tl.dot(b_phi.to(dtype).to(b_m.dtype), b_m) * (1.0 / b_z)[:, None]
                b_out += b_bias[None, :]
                p_row = p_out + o_l64 * stride_ol + o_d
                tl.store(p_row, b_out.to(p_out.dtype.element_ty), mask=m_l)
