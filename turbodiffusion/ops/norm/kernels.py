"""The norms as one kernel each way: a row is read once, kept in registers, and written once.

RMS norm, layer norm, its affine and its modulated form differ in three flags: whether the mean is
taken off, and what multiplies and is added afterwards, shared by all rows or one vector a sample.
The result is stored, or quantised on the way out to int8 with one scale per 128 columns.

A row is a tuple of ``COUNT`` tensors, so that widths like 1536 = 3·512 have no idle lanes.

The backward kernel computes the statistics again from the row it has to read anyway. Programs walk
over rows with a fixed stride and keep their sums for weight and bias in registers; the partial
sums of all programs are added by one reduction, so that gradients do not vary from run to run.
"""

# Tuples grow chunk by chunk, which Triton writes as a sum and type checkers do not follow.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl

ROUNDER = tl.constexpr(1.5 * 2**23)
"""Added to a float32 of size below 2²², it leaves the nearest integer, ties to even, in the low
bits: one addition, where conversion instructions run at a quarter of the rate."""


@triton.jit
def load_row(p_x, m_r, D: tl.constexpr, CHUNK: tl.constexpr, COUNT: tl.constexpr):
    """``COUNT`` tensors (rows, CHUNK) float32 from the row pointers ``p_x`` (rows, 1)."""
    b_x = ()
    for i_c in tl.static_range(COUNT):
        o_d = i_c * CHUNK + tl.arange(0, CHUNK)
        m_x = m_r[:, None]
        if CHUNK * COUNT != D:
            m_x = m_x & (o_d < D)[None, :]
        b_x = b_x + (tl.load(p_x + o_d[None, :], mask=m_x, other=0.0).to(tl.float32),)
    return b_x


@triton.jit
def load_vector(p_w, i_c, D: tl.constexpr, CHUNK: tl.constexpr, COUNT: tl.constexpr):
    """Chunk ``i_c`` of a vector that all rows share, (1, CHUNK) float32."""
    o_d = i_c * CHUNK + tl.arange(0, CHUNK)[None, :]
    if CHUNK * COUNT != D:
        return tl.load(p_w + o_d, mask=o_d < D, other=0.0).to(tl.float32)
    return tl.load(p_w + o_d).to(tl.float32)


@triton.jit
def normalise(
    b_x, eps, D: tl.constexpr, CHUNK: tl.constexpr, COUNT: tl.constexpr, CENTRED: tl.constexpr
):
    """Rows with zero mean (if ``CENTRED``), not yet scaled, and their factor (rows, 1)."""
    if CENTRED:
        b_sum = b_x[0]
        for i_c in tl.static_range(1, COUNT):
            b_sum += b_x[i_c]
        # A division, not a factor 1/D: that would be fused with the subtraction of the mean, whose
        # rounding error then stays in rows without variance, enlarged by 1/sqrt(eps).
        b_mean = tl.div_rn(tl.sum(b_sum, 1), D * 1.0)[:, None]
        b_z = ()
        for i_c in tl.static_range(COUNT):
            b_c = b_x[i_c] - b_mean
            if CHUNK * COUNT != D:
                b_c = tl.where((i_c * CHUNK + tl.arange(0, CHUNK) < D)[None, :], b_c, 0.0)
            b_z = b_z + (b_c,)
    else:
        b_z = b_x
    b_square = b_z[0] * b_z[0]
    for i_c in tl.static_range(1, COUNT):
        b_square += b_z[i_c] * b_z[i_c]
    return b_z, tl.rsqrt(tl.sum(b_square, 1)[:, None] * (1.0 / D) + eps)


@triton.jit
def norm_fwd_kernel(
    x, weight, bias, out, scale,
    length, x_stride, weight_stride, bias_stride, eps,
    D: tl.constexpr, CHUNK: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr,
    CENTRED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    PLUS_ONE: tl.constexpr, ROUND_FIRST: tl.constexpr, QUANTIZE: tl.constexpr,
):  # fmt: skip
    GROUPS: tl.constexpr = CHUNK // 128
    i_b = tl.program_id(1).to(tl.int64)
    o_r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_r = o_r < length
    o_m = i_b * length + o_r
    b_x = load_row(x + (o_m * x_stride)[:, None], m_r, D, CHUNK, COUNT)
    b_z, b_factor = normalise(b_x, eps, D, CHUNK, COUNT, CENTRED)
    for i_c in tl.static_range(COUNT):
        b_y = b_z[i_c] * b_factor
        if ROUND_FIRST:
            b_y = b_y.to(x.dtype.element_ty).to(tl.float32)
        if HAS_WEIGHT:
            b_w = load_vector(weight + i_b * weight_stride, i_c, D, CHUNK, COUNT)
            if PLUS_ONE:
                b_w += 1.0
            b_y *= b_w
        if HAS_BIAS:
            b_y += load_vector(bias + i_b * bias_stride, i_c, D, CHUNK, COUNT)
        o_d = i_c * CHUNK + tl.arange(0, CHUNK)
        m_y = m_r[:, None]
        if CHUNK * COUNT != D:
            m_y = m_y & (o_d < D)[None, :]
        p_out = out + (o_m * D)[:, None] + o_d[None, :]
        if QUANTIZE:
            b_g = tl.reshape(b_y, (ROWS, GROUPS, 128))
            b_amax = tl.maximum(tl.max(tl.abs(b_g), 2), 1e-8)
            b_root = tl.rsqrt(b_amax)  # its square is 1 / amax to 2e-7, in two instructions
            b_q = b_g * (127.0 * b_root * b_root)[:, :, None] + ROUNDER
            b_q = tl.reshape(b_q, (ROWS, CHUNK)).to(tl.int32, bitcast=True).to(tl.int8)
            tl.store(p_out, b_q, mask=m_y)
            o_g = i_c * GROUPS + tl.arange(0, GROUPS)
            m_s = m_r[:, None]
            if CHUNK * COUNT != D:
                m_s = m_s & (o_g < D // 128)[None, :]
            p_scale = scale + (o_m * (D // 128))[:, None] + o_g[None, :]
            tl.store(p_scale, b_amax * (1.0 / 127.0), mask=m_s)
        else:
            tl.store(p_out, b_y.to(out.dtype.element_ty), mask=m_y)


@triton.jit
def norm_bwd_kernel(
    x, weight, grad, dx, dweight, dbias,
    length, x_stride, weight_stride, eps,
    D: tl.constexpr, CHUNK: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr,
    CENTRED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    PLUS_ONE: tl.constexpr, ROUND_FIRST: tl.constexpr,
):  # fmt: skip
    i_p, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b_dw, b_db = (), ()
    for _ in tl.static_range(COUNT):
        b_dw = b_dw + (tl.zeros([CHUNK], tl.float32),)
        b_db = b_db + (tl.zeros([CHUNK], tl.float32),)
    for i_r in range(i_p * ROWS, length, tl.num_programs(0) * ROWS):
        o_r = i_r + tl.arange(0, ROWS)
        m_r = o_r < length
        o_m = i_b * length + o_r
        b_x = load_row(x + (o_m * x_stride)[:, None], m_r, D, CHUNK, COUNT)
        b_g = load_row(grad + (o_m * D)[:, None], m_r, D, CHUNK, COUNT)
        b_z, b_factor = normalise(b_x, eps, D, CHUNK, COUNT, CENTRED)
        b_n, b_dn, b_new_dw, b_new_db = (), (), (), ()
        b_dot = tl.zeros([ROWS, CHUNK], tl.float32)
        b_sum = tl.zeros([ROWS, CHUNK], tl.float32)
        for i_c in tl.static_range(COUNT):
            b_y = b_z[i_c] * b_factor
            b_d = b_g[i_c]
            if HAS_WEIGHT:
                b_seen = b_y.to(x.dtype.element_ty).to(tl.float32) if ROUND_FIRST else b_y
                b_new_dw = b_new_dw + (b_dw[i_c] + tl.sum(b_d * b_seen, 0),)
            if HAS_BIAS:
                b_new_db = b_new_db + (b_db[i_c] + tl.sum(b_d, 0),)
            if HAS_WEIGHT:
                b_w = load_vector(weight + i_b * weight_stride, i_c, D, CHUNK, COUNT)
                if PLUS_ONE:
                    b_w += 1.0
                b_d *= b_w
            b_dot += b_d * b_y
            b_sum += b_d
            b_n = b_n + (b_y,)
            b_dn = b_dn + (b_d,)
        if HAS_WEIGHT:
            b_dw = b_new_dw
        if HAS_BIAS:
            b_db = b_new_db
        b_along = tl.sum(b_dot, 1)[:, None] * (1.0 / D)
        b_mean = tl.sum(b_sum, 1)[:, None] * (1.0 / D)
        for i_c in tl.static_range(COUNT):
            b_dx = b_dn[i_c] - b_n[i_c] * b_along
            if CENTRED:
                b_dx -= b_mean
            o_d = i_c * CHUNK + tl.arange(0, CHUNK)
            m_x = m_r[:, None]
            if CHUNK * COUNT != D:
                m_x = m_x & (o_d < D)[None, :]
            p_dx = dx + (o_m * D)[:, None] + o_d[None, :]
            tl.store(p_dx, (b_dx * b_factor).to(dx.dtype.element_ty), mask=m_x)
    o_p = (i_b * tl.num_programs(0) + i_p) * D
    for i_c in tl.static_range(COUNT):
        o_d = i_c * CHUNK + tl.arange(0, CHUNK)
        if HAS_WEIGHT:
            tl.store(dweight + o_p + o_d, b_dw[i_c], mask=o_d < D)
        if HAS_BIAS:
            tl.store(dbias + o_p + o_d, b_db[i_c], mask=o_d < D)
