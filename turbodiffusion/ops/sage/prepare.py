"""Kernels that read queries, keys and values once each and leave what the attention kernel needs.

``pool_kernel`` reduces blocks of tokens: sums of keys (for their mean), largest values of a channel
(for e4m3). ``quantise_kernel`` then reads keys and values together: smoothed int8 keys with a scale
per block, their block means, values in the format of the second product, and the state of the
linear branch. ``query_kernel`` reads queries: int8 with a scale per block, block means, and the
whole linear branch, which only depends on the query and that state.

Shapes in comments: L tokens, D head width, BK keys of a block.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def round_away(x):
    """Nearest integer, halves away from zero, as int32."""
    return (x + tl.where(x >= 0, 0.5, -0.5)).to(tl.int32)


@triton.jit
def feature_map(x, FEATURE: tl.constexpr):
    """φ over the head width [rows, D] in float32."""
    if FEATURE == "softmax":
        b_e = tl.exp(x - tl.max(x, 1)[:, None])
        b_phi = b_e / tl.sum(b_e, 1)[:, None]
    elif FEATURE == "elu":
        b_phi = tl.exp(tl.minimum(x, 0)) + tl.maximum(x, 0)  # elu(x) + 1 on either side of zero
    else:
        b_phi = tl.maximum(x, 0)
    return b_phi


@triton.jit
def pool_kernel(
    p_x, p_out, stride_b, stride_l, stride_n, L, N,
    D: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Sum or largest magnitude (``KIND``) of each ``BLOCK`` tokens: float32 (B, N, blocks, D).

    Heads are the fastest axis of the grid: neighbours in memory run at the same time.
    """
    i_bn, i_block = tl.program_id(0), tl.program_id(1)
    i_b, i_n = (i_bn // N).to(tl.int64), (i_bn % N).to(tl.int64)
    o_d = tl.arange(0, D)
    o_l = i_block * BLOCK + tl.arange(0, BLOCK)
    p_x += i_b * stride_b + i_n * stride_n
    b_x = tl.load(
        p_x + o_l.to(tl.int64)[:, None] * stride_l + o_d, mask=(o_l < L)[:, None], other=0.0
    ).to(tl.float32)  # [BLOCK, D]
    b_out = tl.max(tl.abs(b_x), 0) if KIND == "amax" else tl.sum(b_x, 0)
    o_out = (i_bn.to(tl.int64) * tl.num_programs(1) + i_block) * D
    tl.store(p_out + o_out + o_d, b_out)


@triton.jit
def quantise_kernel(
    p_k, p_v, p_mean, p_v_scale, p_k8, p_k_scale, p_k_mean, p_vq, p_state, p_weight,
    stride_kb, stride_kl, stride_kn, stride_vb, stride_vl, stride_vn, S, N, K, PER,
    D: tl.constexpr, BK: tl.constexpr, PV: tl.constexpr, FEATURE: tl.constexpr,
    POOL: tl.constexpr,
):  # fmt: skip
    """Keys and values of one head, ``PER`` key blocks a program.

    Writes int8 keys (B, N, K·BK, D), their scales (B, N, K) and, with ``POOL``, block means
    (B, N, K, D). ``PV`` is ``keep`` (values are used as they are), ``half`` (cast, (B, N, K·BK, D))
    or ``fp8`` (scaled by channel, transposed to (B, N, D, K·BK): the matrix instruction wants keys
    side by side). Unless ``FEATURE`` is ``none`` it sums φ(k)ᵀ v and φ(k) over its blocks.
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
    b_weight = tl.zeros([D], tl.float32)
    for i_k in range(i_part * PER, tl.minimum(i_part * PER + PER, K)):
        o_s = i_k * BK + o_k
        m_s = (o_s < S)[:, None]
        o_row = o_s.to(tl.int64)[:, None]
        b_k = tl.load(p_k + o_row * stride_kl + o_d, mask=m_s, other=0.0)  # [BK, D]
        b_smooth = (b_k.to(tl.float32) - b_mean[None, :]).to(dtype).to(tl.float32)
        b_smooth = tl.where(m_s, b_smooth, 0.0)
        b_scale = tl.max(tl.abs(b_smooth)) / 127 + 1e-7
        b_k8 = round_away(b_smooth * (1.0 / b_scale))
        tl.store(p_k8 + (i_head * K * BK + o_row) * D + o_d, b_k8.to(p_k8.dtype.element_ty))
        tl.store(p_k_scale + i_head * K + i_k, b_scale)
        if POOL:
            count = tl.minimum(S - i_k * BK, BK).to(tl.float32)
            tl.store(
                p_k_mean + (i_head * K + i_k) * D + o_d, (tl.sum(b_smooth, 0) / count).to(dtype)
            )
        if PV != "keep" or FEATURE != "none":
            b_v = tl.load(p_v + o_row * stride_vl + o_d, mask=m_s, other=0.0)  # [BK, D]
        if PV == "half":
            b_half = tl.clamp(b_v.to(tl.float32), -65504.0, 65504.0).to(p_vq.dtype.element_ty)
            tl.store(p_vq + (i_head * K * BK + o_row) * D + o_d, b_half)
        if PV == "fp8":
            b_v8 = tl.clamp(b_v.to(tl.float32) * b_v_inverse[None, :], -448.0, 448.0)
            o_v8 = (i_head * D + o_d[:, None]) * K * BK + o_s[None, :]
            tl.store(p_vq + o_v8, tl.trans(b_v8.to(p_vq.dtype.element_ty)))
        if FEATURE != "none":
            b_phi = tl.where(m_s, feature_map(b_k.to(tl.float32), FEATURE), 0.0).to(dtype)
            b_weight += tl.sum(b_phi.to(tl.float32), 0)
            b_state = tl.dot(tl.trans(b_phi), b_v, b_state)
    if FEATURE != "none":
        o_part = i_head * tl.num_programs(1) + i_part
        tl.store(p_state + (o_part * D + o_d[:, None]) * D + o_d[None, :], b_state)
        tl.store(p_weight + o_part * D + o_d, b_weight)


@triton.jit
def query_kernel(
    p_q, p_mean, p_state, p_weight, p_bias, p_q8, p_q_scale, p_q_mean, p_shift, p_out,
    stride_qb, stride_ql, stride_qn, stride_ob, stride_ol, stride_on, L, N, scale,
    D: tl.constexpr, BQ: tl.constexpr, ROWS: tl.constexpr, FEATURE: tl.constexpr,
    POOL: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """One query block of one head: int8 queries (B, N, Q·BQ, D) and their scale (B, N, Q).

    ``POOL`` writes its mean (B, N, Q, D); ``SHIFT`` writes q · mean(k) · D^-0.5 (B, N, Q·BQ), by
    which smoothing lowered the row's scores. Unless ``FEATURE`` is ``none`` the linear branch
    φ(q) M / (ε + φ(q)·w) + b is left in the output, where M is the linear state (B, N, D, D) times
    the projection and w the sum of φ(k): one product more in a pass that waits for memory.
    """
    i_bn, i_q = tl.program_id(0), tl.program_id(1)
    i_b, i_n = (i_bn // N).to(tl.int64), (i_bn % N).to(tl.int64)
    i_head = i_bn.to(tl.int64)
    i_row = i_head * tl.num_programs(1) + i_q
    o_d, o_q = tl.arange(0, D), tl.arange(0, BQ)
    o_l = i_q * BQ + o_q
    m_l = (o_l < L)[:, None]
    dtype: tl.constexpr = p_q.dtype.element_ty
    p_start = p_q + i_b * stride_qb + i_n * stride_qn
    p_rows = p_start + o_l.to(tl.int64)[:, None] * stride_ql
    b_q = tl.load(p_rows + o_d[None, :], mask=m_l, other=0.0).to(tl.float32)  # [BQ, D]
    b_scale = tl.max(tl.abs(b_q)) / 127 + 1e-7
    b_q8 = round_away(b_q * (1.0 / b_scale)).to(p_q8.dtype.element_ty)
    tl.store(p_q8 + i_row * BQ * D + (o_q[:, None] * D + o_d[None, :]), b_q8)
    tl.store(p_q_scale + i_row, b_scale)
    if POOL:
        b_mean = tl.sum(b_q, 0) / tl.minimum(L - i_q * BQ, BQ).to(tl.float32)
        tl.store(p_q_mean + i_row * D + o_d, b_mean.to(dtype))
    if SHIFT:
        b_key = tl.load(p_mean + i_head * D + o_d).to(tl.float32)
        tl.store(p_shift + i_row * BQ + o_q, tl.sum(b_q * b_key[None, :], 1) * scale)
    if FEATURE != "none":
        b_weight = tl.load(p_weight + i_head * D + o_d)
        b_bias = tl.load(p_bias + o_d)
        p_state += i_head * D * D
        b_m = tl.load(p_state + (o_d[:, None] * D + o_d[None, :]))  # [D, D]
        p_out += i_b * stride_ob + i_n * stride_on
        # A few rows at a time, read again from the cache: all of them do not fit in registers
        # beside the state and the product.
        for i in tl.static_range(BQ // ROWS):
            o_r = i_q * BQ + i * ROWS + tl.arange(0, ROWS)
            m_r = (o_r < L)[:, None]
            o_r64 = o_r.to(tl.int64)[:, None]
            p_x = p_start + o_r64 * stride_ql
            b_x = tl.load(p_x + o_d[None, :], mask=m_r, other=0.0).to(tl.float32)  # [ROWS, D]
            b_phi = feature_map(b_x, FEATURE).to(dtype)
            b_z = 1e-5 + tl.sum(b_phi.to(tl.float32) * b_weight[None, :], 1)
            b_out = tl.dot(b_phi.to(b_m.dtype), b_m) / b_z[:, None] + b_bias[None, :]
            p_row = p_out + o_r64 * stride_ol
            tl.store(p_row + o_d[None, :], b_out.to(p_out.dtype.element_ty), mask=m_r)
