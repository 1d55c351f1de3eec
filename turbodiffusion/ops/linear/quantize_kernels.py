"""Kernels that quantise: 128×128 tiles and 1×128 groups to int8, whole rows to e4m3.

Rounding half to even is done by adding 1.5·2²³: the sum keeps no fraction, and its last byte is
the integer. The value is clamped between product and sum, which also keeps the compiler from
joining the two into one fused operation that would round differently.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROUNDING = tl.constexpr(12582912.0)  # 1.5 · 2^23


@triton.jit
def to_int8(x):
    """Round half to even and saturate, float32 to int8."""
    x = tl.minimum(tl.maximum(x, -128.0), 127.0) + ROUNDING
    return x.to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def quantize_kernel(
    p_x,
    p_q,
    p_scale,
    M,
    K,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """A ROWS × 128 piece of the matrix: one scale if TILE, else one a row."""
    i_m, i_k = tl.program_id(0), tl.program_id(1)
    o_m = i_m * ROWS + tl.arange(0, ROWS)
    o_k = i_k * 128 + tl.arange(0, 128)
    m_x = (o_m < M)[:, None] & (o_k < K)[None, :]
    o_x = o_m[:, None].to(tl.int64) * K + o_k[None, :]
    b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_amax = tl.maximum(tl.max(tl.abs(b_x), 1), 1e-8)
    KB = tl.num_programs(1)
    if TILE:
        amax = tl.max(b_amax, 0)
        b_q = to_int8(b_x * tl.div_rn(FACTOR, amax))
        tl.store(p_scale + i_m.to(tl.int64) * KB + i_k, tl.div_rn(amax, FACTOR))
    else:
        b_q = to_int8(b_x * tl.div_rn(FACTOR, b_amax)[:, None])
        o_scale = o_m.to(tl.int64) * KB + i_k
        tl.store(p_scale + o_scale, tl.div_rn(b_amax, FACTOR), mask=o_m < M)
    tl.store(p_q + o_x, b_q, mask=m_x)


@triton.jit
def quantize_fp8_kernel(p_x, p_q, p_scale, K, BLOCK: tl.constexpr):
    """One row: its largest value, then the row once more while it is still in cache."""
    i_m = tl.program_id(0)
    p_x += i_m.to(tl.int64) * K
    p_q += i_m.to(tl.int64) * K
    o_k = tl.arange(0, BLOCK)
    b_amax = tl.zeros((BLOCK,), tl.float32)
    for i_k in range(0, K, BLOCK):
        b_x = tl.load(p_x + i_k + o_k, mask=i_k + o_k < K, other=0.0).to(tl.float32)
        b_amax = tl.maximum(b_amax, tl.abs(b_x))
    scale = tl.div_rn(tl.maximum(tl.max(b_amax, 0), 1e-8), 448.0)
    tl.store(p_scale + i_m, scale)
    for i_k in range(0, K, BLOCK):
        b_x = tl.load(p_x + i_k + o_k, mask=i_k + o_k < K, other=0.0).to(tl.float32)
        b_x = tl.minimum(tl.maximum(tl.div_rn(b_x, scale), -448.0), 448.0)
        tl.store(p_q + i_k + o_k, b_x.to(tl.float8e4nv), mask=i_k + o_k < K)
