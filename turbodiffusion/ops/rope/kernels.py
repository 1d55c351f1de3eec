"""Rotation of all heads of a token in one pass, with or without the RMS norm before it.

The norm spans all heads of a token and the rotation acts on pairs inside each, so a program holds
whole rows, as the norm kernels do. Cosines and sines of a token are read once for all its heads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from turbodiffusion.ops.norm.kernels import load_row, load_vector, normalise


@triton.jit
def rope_kernel(
    x, weight, cos, sin, out, length, x_stride, eps,
    D: tl.constexpr, HEAD: tl.constexpr, CHUNK: tl.constexpr, COUNT: tl.constexpr,
    ROWS: tl.constexpr, NORM: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    P: tl.constexpr = HEAD // 2
    HEADS: tl.constexpr = CHUNK // HEAD
    i_b = tl.program_id(1).to(tl.int64)
    o_r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_r = o_r < length
    o_m = i_b * length + o_r
    b_x = load_row(x + (o_m * x_stride)[:, None], m_r, D, CHUNK, COUNT)
    # [rows, heads, pairs]: one address for all heads, so that the values lie where they are needed
    o_p = (o_r[:, None] * P)[:, :, None] + tl.arange(0, P)[None, None, :]
    o_p += tl.zeros([ROWS, HEADS, P], tl.int32)
    b_cos = tl.load(cos + o_p, mask=m_r[:, None, None], other=0.0)
    b_sin = tl.load(sin + o_p, mask=m_r[:, None, None], other=0.0)
    if INVERSE:
        b_sin = -b_sin
    if NORM:
        b_x, b_factor = normalise(b_x, eps, D, CHUNK, COUNT, False)
    for i_c in tl.static_range(COUNT):
        b_y = b_x[i_c]
        if NORM:
            b_y = b_y * b_factor * load_vector(weight, i_c, D, CHUNK, COUNT)
        b_even, b_odd = tl.split(tl.reshape(b_y, (ROWS, HEADS, P, 2)))
        b_turned = tl.join(b_even * b_cos - b_odd * b_sin, b_even * b_sin + b_odd * b_cos)
        o_d = i_c * CHUNK + tl.arange(0, CHUNK)
        m_y = m_r[:, None]
        if CHUNK * COUNT != D:
            m_y = m_y & (o_d < D)[None, :]
        b_out = tl.reshape(b_turned, (ROWS, CHUNK)).to(out.dtype.element_ty)
        tl.store(out + (o_m * D)[:, None] + o_d[None, :], b_out, mask=m_y)
