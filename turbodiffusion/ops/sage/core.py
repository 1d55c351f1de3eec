"""The attention kernel: int8 scores, online softmax, values in 16 bits or e4m3.

The rows of a query block are cut into ``PARTS``, which share every key block that is loaded. On
Hopper that is what decides: 14B at 480p reads 17 GB of keys and values from the L2 cache with 64
rows to a program, half of it with 128, and two parts of 64 rows with four warps leave registers
for a second program on the multiprocessor, whose products run beside the first one's softmax.

A list is ascending, so only its last block can be short of keys. It is visited first and masked;
the loop over the others needs no mask, which would be a quarter of its instructions.
"""

# Tuples grow by addition, since Triton knows no unpacking; each stage of a loop has its own type.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import triton
import triton.language as tl

from turbodiffusion.ops.sage.naive import E4M3_OFFSET
from turbodiffusion.ops.sage.prepare import key_at

OFFSET = tl.constexpr(E4M3_OFFSET)


@triton.jit
def _block(
    b_qs, accs, tops, sums, b_scale, p_k, p_v, p_k_scale, i_k, stride_vl, S, some,
    D: tl.constexpr, BK: tl.constexpr, PV: tl.constexpr, PARTS: tl.constexpr,
    TWO_LEVEL: tl.constexpr, MASKED: tl.constexpr, EMPTY: tl.constexpr,
):  # fmt: skip
    """One key block of the online softmax for all parts of the rows.

    ``MASKED`` leaves out keys past the last one, all of them unless ``some``. ``EMPTY`` says that
    rows may have no key so far.
    """
    o_d, o_k = tl.arange(0, D), tl.arange(0, BK)
    # A scalar base for the block and 32-bit offsets in it: one register a load instead of two.
    i_s = i_k.to(tl.int64) * BK
    b_k = tl.load(p_k + i_s * D + (o_k[None, :] * D + o_d[:, None]))  # [D, BK]
    b_scale = b_scale * tl.load(p_k_scale + i_k)
    if PV == "fp8":
        # Padded with zeros up to whole blocks, keys side by side.
        b_v = tl.trans(tl.load(p_v + i_s * D + (o_d[:, None] * BK + o_k[None, :])))  # [BK, D]
    else:
        p_v += i_s * stride_vl + (o_k[:, None] * stride_vl + o_d[None, :])
        b_v = tl.load(p_v, mask=(o_k < S - i_s)[:, None], other=0.0) if MASKED else tl.load(p_v)
    new_accs = ()
    new_tops = ()
    new_sums = ()
    for j in tl.static_range(PARTS):
        b_t = tl.dot(b_qs[j], b_k).to(tl.float32)  # [rows, BK], whole numbers
        if MASKED:
            o_key = key_at(o_k) if PV == "fp8" else o_k
            b_t = tl.where(((o_key < S - i_s) & some)[None, :], b_t, float("-inf"))
        b_top = tl.maximum(tops[j], tl.max(b_t, 1) * b_scale)
        b_base = tl.where(b_top == float("-inf"), 0.0, b_top) if EMPTY else b_top
        b_shrink = tl.exp2(tops[j] - b_base)
        # 448 uses the whole range of e4m3; it cancels against the sum.
        b_p = tl.exp2(b_t * b_scale - (b_base - (OFFSET if PV == "fp8" else 0.0))[:, None])
        b_sum = sums[j] * b_shrink + tl.sum(b_p, 1)
        if PV == "fp8":  # in the order of the keys; each thread has what it needs
            b_p = b_p.reshape(b_p.shape[0], BK // 16, 2, 4, 2).permute(0, 1, 3, 2, 4)
            b_p = b_p.reshape(b_p.shape[0], BK)
        b_acc = accs[j] * b_shrink[:, None]
        if TWO_LEVEL:
            b_acc += tl.dot(b_p.to(b_v.dtype), b_v, max_num_imprecise_acc=BK)
        else:
            b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc)
        new_accs = new_accs + (b_acc,)
        new_tops = new_tops + (b_top,)
        new_sums = new_sums + (b_sum,)
    return new_accs, new_tops, new_sums


@triton.jit
def core_kernel(
    p_q, p_k, p_v, p_q_scale, p_k_scale, p_v_scale, p_blocks, p_counts, p_shift, p_out, p_lse,
    stride_vb, stride_vl, stride_vn, stride_ob, stride_ol, stride_on,
    L, S, N, K, KEPT, scale,
    D: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, PV: tl.constexpr, PARTS: tl.constexpr,
    TWO_LEVEL: tl.constexpr, LISTED: tl.constexpr, COUNTED: tl.constexpr, LSE: tl.constexpr,
    ADD: tl.constexpr,
):  # fmt: skip
    """One query block of one head.

    Queries (B, N, Q·BQ, D) and keys (B, N, K·BK, D) hold whole numbers with a scale per block, keys
    in the order that ``quantise_kernel`` leaves; values are (B, S, N, D) by strides, or for fp8
    (B, N, K, D, BK). ``LISTED`` reads ``KEPT`` ascending key blocks of the row (``COUNTED``: as
    many as its count says), else all ``K`` are visited. ``ADD`` adds the output to what is there.
    """
    ROWS: tl.constexpr = BQ // PARTS
    i_q, i_bn = tl.program_id(0), tl.program_id(1)
    i_b, i_n = (i_bn // N).to(tl.int64), (i_bn % N).to(tl.int64)
    i_head = i_bn.to(tl.int64)
    i_row = i_head * tl.num_programs(0) + i_q
    o_d = tl.arange(0, D)
    p_k += i_head * K * BK * D
    p_v += i_b * stride_vb + i_n * stride_vn
    p_k_scale += i_head * K

    b_qs = ()
    accs = ()
    tops = ()
    sums = ()
    for j in tl.static_range(PARTS):
        o_q = j * ROWS + tl.arange(0, ROWS)
        b_qs = b_qs + (tl.load(p_q + i_row * BQ * D + (o_q[:, None] * D + o_d[None, :])),)
        accs = accs + (tl.zeros([ROWS, D], tl.float32),)
        tops = tops + (tl.full([ROWS], float("-inf"), tl.float32),)
        sums = sums + (tl.zeros([ROWS], tl.float32),)
    b_scale = tl.load(p_q_scale + i_row) * scale
    count = K
    if LISTED:
        p_blocks += i_row * KEPT
        count = KEPT
        if COUNTED:
            count = tl.load(p_counts + i_row)
    if not COUNTED:
        tl.assume(count > 0)
    i_k = count - 1
    if LISTED:
        i_k = tl.load(p_blocks + tl.maximum(count - 1, 0)).to(tl.int32)
    accs, tops, sums = _block(
        b_qs, accs, tops, sums, b_scale, p_k, p_v, p_k_scale, i_k, stride_vl, S,
        count > 0, D, BK, PV, PARTS, TWO_LEVEL, True, COUNTED,
    )  # fmt: skip
    i_k = tl.zeros([], tl.int32)
    if LISTED:
        i_k = tl.load(p_blocks).to(tl.int32)
    for i in range(count - 1):
        # One ahead, so that its latency hides behind this block.
        i_next = tl.load(p_blocks + i + 1).to(tl.int32) if LISTED else i_k + 1
        accs, tops, sums = _block(
            b_qs, accs, tops, sums, b_scale, p_k, p_v, p_k_scale, i_k, stride_vl, S,
            True, D, BK, PV, PARTS, TWO_LEVEL, False, False,
        )  # fmt: skip
        i_k = i_next

    p_out += i_b * stride_ob + i_n * stride_on
    for j in tl.static_range(PARTS):
        o_q = j * ROWS + tl.arange(0, ROWS)
        o_l = i_q * BQ + o_q
        b_sum = sums[j]
        if COUNTED:
            b_sum = tl.where(b_sum > 0, b_sum, 1.0)
        b_acc = accs[j] * (1.0 / b_sum)[:, None]
        if PV == "fp8":
            b_acc = b_acc * tl.load(p_v_scale + i_head * D + o_d)[None, :]
        if LSE:
            b_lse = tops[j] + tl.log2(sums[j]) - (OFFSET if PV == "fp8" else 0.0)
            b_lse += tl.load(p_shift + i_row * BQ + o_q)
            tl.store(p_lse + i_head * L + o_l, b_lse, mask=o_l < L)
        m_l = (o_l < L)[:, None]
        p_rows = p_out + o_l.to(tl.int64)[:, None] * stride_ol + o_d[None, :]
        if ADD:
            b_acc += tl.load(p_rows, mask=m_l, other=0.0).to(tl.float32)
        tl.store(p_rows, b_acc.to(p_out.dtype.element_ty), mask=m_l)
