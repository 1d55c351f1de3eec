"""The attention kernel: int8 scores, online softmax, values in 16 bits or e4m3."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _block(
    b_q, b_acc, b_max, b_sum, b_scale, p_k, p_v, p_k_scale, i_k, stride_vl, stride_vd, S,
    D: tl.constexpr, BK: tl.constexpr, PV: tl.constexpr, TWO_LEVEL: tl.constexpr,
    EMPTY: tl.constexpr,
):  # fmt: skip
    """One key block of the online softmax. ``EMPTY`` says that rows may have no key so far."""
    o_d, o_k = tl.arange(0, D), tl.arange(0, BK)
    # A scalar base for the block and 32-bit offsets in it: one register a load instead of two.
    i_s = i_k.to(tl.int64) * BK
    b_k = tl.load(p_k + i_s * D + (o_k[None, :] * D + o_d[:, None]))  # [D, BK]
    b_scale = b_scale * tl.load(p_k_scale + i_k)
    b_t = tl.dot(b_q, b_k).to(tl.float32)  # [BQ, BK], whole numbers
    if i_s + BK > S:
        b_t = tl.where((o_k < S - i_s)[None, :], b_t, float("-inf"))
    b_top = tl.maximum(b_max, tl.max(b_t, 1) * b_scale)
    b_base = tl.where(b_top == float("-inf"), 0.0, b_top) if EMPTY else b_top
    b_shrink = tl.exp2(b_max - b_base)
    # 2^8.807 = 448 uses the whole range of e4m3; it cancels against the sum.
    b_p = tl.exp2(b_t * b_scale - (b_base - (8.807 if PV == "fp8" else 0.0))[:, None])
    b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
    b_acc = b_acc * b_shrink[:, None]
    if PV == "fp8":
        # Padded with zeros up to whole blocks, keys side by side.
        b_v = tl.trans(tl.load(p_v + i_s + (o_d[:, None] * stride_vd + o_k[None, :])))  # [BK, D]
        if TWO_LEVEL:
            b_acc += tl.dot(b_p.to(b_v.dtype), b_v, max_num_imprecise_acc=BK)
        else:
            b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc)
    else:
        p_v += i_s * stride_vl + (o_k[:, None] * stride_vl + o_d[None, :])
        b_v = tl.load(p_v, mask=(o_k < S - i_s)[:, None], other=0.0)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc)
    return b_acc, b_top, b_sum


@triton.jit
def core_kernel(
    p_q, p_k, p_v, p_q_scale, p_k_scale, p_v_scale, p_blocks, p_counts, p_shift, p_out, p_lse,
    stride_vb, stride_vl, stride_vn, stride_vd, stride_ob, stride_ol, stride_on,
    L, S, N, K, KEPT, scale,
    D: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, PV: tl.constexpr,
    TWO_LEVEL: tl.constexpr, LISTED: tl.constexpr, COUNTED: tl.constexpr, LSE: tl.constexpr,
    ADD: tl.constexpr,
):  # fmt: skip
    """One query block of one head.

    Queries (B, N, Q·BQ, D) and keys (B, N, K·BK, D) hold whole numbers with a scale per block;
    values are (B, S, N, D) by strides, or for fp8 (B, N, D, K·BK). ``LISTED`` reads ``KEPT``
    ascending key blocks of the row (``COUNTED``: as many as its count says), else all ``K`` are
    visited. ``ADD`` adds the output to what is there already.
    """
    i_q, i_bn = tl.program_id(0), tl.program_id(1)
    i_b, i_n = (i_bn // N).to(tl.int64), (i_bn % N).to(tl.int64)
    i_head = i_bn.to(tl.int64)
    i_row = i_head * tl.num_programs(0) + i_q
    o_d = tl.arange(0, D)
    o_q = tl.arange(0, BQ)
    p_k += i_head * K * BK * D
    p_v += i_b * stride_vb + i_n * stride_vn
    p_k_scale += i_head * K

    b_q = tl.load(p_q + i_row * BQ * D + (o_q[:, None] * D + o_d[None, :]))  # [BQ, D]
    b_scale = tl.load(p_q_scale + i_row) * scale
    b_acc = tl.zeros([BQ, D], tl.float32)
    b_max = tl.full([BQ], float("-inf"), tl.float32)
    b_sum = tl.zeros([BQ], tl.float32)
    count = K
    i_k = tl.zeros([], tl.int32)
    if LISTED:
        p_blocks += i_row * KEPT
        count = KEPT
        if COUNTED:
            count = tl.load(p_counts + i_row)
        i_k = tl.load(p_blocks).to(tl.int32)
    if not COUNTED:
        tl.assume(count > 0)
    for i in range(count):
        if LISTED:  # one ahead, so that its latency hides behind this block
            i_next = tl.load(p_blocks + tl.minimum(i + 1, count - 1)).to(tl.int32)
        else:
            i_next = i_k + 1
        b_acc, b_max, b_sum = _block(
            b_q, b_acc, b_max, b_sum, b_scale, p_k, p_v, p_k_scale, i_k, stride_vl, stride_vd, S,
            D, BK, PV, TWO_LEVEL, COUNTED,
        )  # fmt: skip
        i_k = i_next
    b_divisor = b_sum
    if COUNTED:
        b_divisor = tl.where(b_sum > 0, b_sum, 1.0)
    b_acc = b_acc / b_divisor[:, None]
    if PV == "fp8":
        b_acc = b_acc * tl.load(p_v_scale + i_head * D + o_d)[None, :]
    o_l = i_q * BQ + o_q
    if LSE:
        b_lse = b_max + tl.log2(b_sum) - (8.807 if PV == "fp8" else 0.0)
        b_lse = b_lse * 0.6931471805599453 + tl.load(p_shift + i_row * BQ + o_q)
        tl.store(p_lse + i_head * L + o_l, b_lse, mask=o_l < L)
    m_l = (o_l < L)[:, None]
    p_out += i_b * stride_ob + i_n * stride_on
    p_out += o_l.to(tl.int64)[:, None] * stride_ol + o_d[None, :]
    if ADD:
        b_acc += tl.load(p_out, mask=m_l, other=0.0).to(tl.float32)
    tl.store(p_out, b_acc.to(p_out.dtype.element_ty), mask=m_l)
