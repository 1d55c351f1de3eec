"""The block-scaled int8 product and what follows it, in one kernel.

Per K block of 128 the tensor cores make exact int32 sums c, which are promoted to the float32
accumulator: ``acc += float(c) · (scale_x · scale_w)``. On Hopper this promotion takes three
quarters of the time of the product itself, on cores that are otherwise idle, so it must run while
the next product is on its way. Triton waits for an int32 product right after it was issued. Two
things make the overlap happen all the same:

* The tile is cut into SPLIT_M × SPLIT_N parts with a product each. The assembler then issues the
  product of the next part before it promotes the last one, for a part's registers more.
* Small tiles let two programs share a multiprocessor, and one promotes while the other multiplies.

Without ORDERED, LLVM collects the products of all parts first and promotes them at the end: one
live int32 tile, and spilled registers. A promotion that counts as having side effects stays where
it was written; the assembler below is free to overlap it.
"""

# Tuples grow by addition, since Triton knows no unpacking; each stage of a loop has its own type.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import triton
import triton.language as tl

from turbodiffusion.ops.gpu import interpreted
from turbodiffusion.ops.linear.quantize_kernels import ROUNDING
from turbodiffusion.ops.linear.tiles import part, place

STORE = tl.constexpr(0)
GELU_QUANTIZE = tl.constexpr(1)
RESIDUAL = tl.constexpr(2)

INTERPRETED = tl.constexpr(interpreted())  # decided when Triton is imported, as Triton does it

GELU_PAIR = tl.constexpr("""{
    .reg .f32 a, b, c;
    mul.f32 a, $2, $2;
    mul.f32 b, $3, $3;
    fma.rn.f32 a, a, 0fBDD2D3E8, 0fC0135761;
    fma.rn.f32 b, b, 0fBDD2D3E8, 0fC0135761;
    mul.f32 a, a, $2;
    mul.f32 b, b, $3;
    min.f32 a, a, 0f427C0000;
    min.f32 b, b, 0f427C0000;
    ex2.approx.ftz.f32 a, a;
    ex2.approx.ftz.f32 b, b;
    add.f32 a, a, 0f3F800000;
    add.f32 b, b, 0f3F800000;
    mul.f32 c, a, b;
    rcp.approx.ftz.f32 c, c;
    mul.f32 b, c, b;
    mul.f32 a, c, a;
    mul.f32 $0, b, $2;
    mul.f32 $1, a, $3;
}""")
"""``u / (1 + e)`` of two numbers, ``e = 2^(u (a u² + b))`` with ``b = -2 log2(e) √(2/π)`` and
``a = 0.044715 b``.

Special functions, sixteen a cycle, would take longer than all the other arithmetic. Two numbers
share one reciprocal: ``1/x = y / (x y)``. Exponents end at 63, so that the product is finite; what
is cut off there is 1e-19 of ``u``. The compiler's own exponential and division, which also take
denormal numbers, are 14 instructions more."""


@triton.jit
def int8_gemm_kernel(
    x,  # int8 (M, K): a pointer, or a descriptor with blocks of a part
    w,  # int8 (N, K), alike
    p_sx,  # float32 (M / SX_ROWS, K / 128)
    p_sw,  # float32 (N / 128, K / 128)
    p_bias,  # (N,) or None
    p_residual,  # (M, N) or None
    p_gate,  # (M / L, N) or None
    p_out,  # (M, N)
    p_so,  # float32 (M, N / 128) or None
    M,
    N,
    K,
    L,  # rows of a sample
    ONE_SAMPLE: tl.constexpr,
    SX_ROWS: tl.constexpr,
    EPILOGUE: tl.constexpr,
    RELEASED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SPLIT_M: tl.constexpr,
    SPLIT_N: tl.constexpr,
    GROUP_M: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    ORDERED: tl.constexpr,
    HALF: tl.constexpr,
):
    PM: tl.constexpr = BM // SPLIT_M
    PN: tl.constexpr = BN // SPLIT_N
    i_m, i_n = place(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP_M)
    i_m, i_n, KB = i_m * BM, i_n * BN, K // 128
    p_sw += (i_n // 128).to(tl.int64) * KB
    p_scales = ()
    accs = ()
    for i in tl.static_range(SPLIT_M):
        o_m = tl.minimum(i_m + i * PM + tl.arange(0, PM), M - 1)
        p_scales = p_scales + (p_sx + (o_m // SX_ROWS).to(tl.int64) * KB,)
        for _ in tl.static_range(SPLIT_N):
            accs = accs + (tl.zeros((PM, PN), tl.float32),)
    for k in range(KB):
        ws = ()
        for j in tl.static_range(SPLIT_N):
            ws = ws + (part(w, i_n + j * PN, k * 128, N, K, PN, 128, DESCRIPTORS),)
        scale_w = tl.load(p_sw + k)
        sums = ()
        for i in tl.static_range(SPLIT_M):
            b_x = part(x, i_m + i * PM, k * 128, M, K, PM, 128, DESCRIPTORS)
            b_scale = tl.load(p_scales[i] + k) * scale_w
            for j in tl.static_range(SPLIT_N):
                acc = accs[i * SPLIT_N + j]
                sums = sums + (_accumulate(acc, b_x, ws[j], b_scale, ORDERED, HALF),)
        accs = sums

    for i in tl.static_range(SPLIT_M):
        o_m = i_m + i * PM + tl.arange(0, PM)
        b_ys = ()
        for j in tl.static_range(SPLIT_N):
            o_n = i_n + j * PN + tl.arange(0, PN)
            b_y = accs[i * SPLIT_N + j]
            if p_bias is not None:
                if RELEASED:
                    b_y = b_y.to(p_out.dtype.element_ty).to(tl.float32)
                b_y += tl.load(p_bias + o_n, mask=o_n < N, other=0.0).to(tl.float32)[None, :]
            b_ys = b_ys + (b_y,)
        if EPILOGUE == GELU_QUANTIZE:
            _store_quantized(p_out, p_so, b_ys, o_m, i_n, M, N, PN, SPLIT_N)
        else:
            for j in tl.static_range(SPLIT_N):
                o_n = i_n + j * PN + tl.arange(0, PN)
                m_y = (o_m < M)[:, None] & (o_n < N)[None, :]
                o_y = o_m[:, None].to(tl.int64) * N + o_n[None, :]
                b_y = b_ys[j]
                if EPILOGUE == RESIDUAL:
                    if p_gate is not None:
                        if ONE_SAMPLE:
                            b_gate = tl.load(p_gate + o_n, mask=o_n < N, other=0.0)[None, :]
                        else:
                            o_gate = (o_m // L)[:, None].to(tl.int64) * N + o_n[None, :]
                            b_gate = tl.load(p_gate + o_gate, mask=m_y, other=0.0)
                        b_y *= b_gate.to(tl.float32)
                    b_y += tl.load(p_residual + o_y, mask=m_y, other=0.0).to(tl.float32)
                tl.store(p_out + o_y, b_y.to(p_out.dtype.element_ty), mask=m_y)


@triton.jit
def _accumulate(acc, b_x, b_w, b_scale, ORDERED: tl.constexpr, HALF: tl.constexpr):
    """``acc + (b_x b_wᵀ) · b_scale``, the product exact."""
    if HALF:  # integers up to 256 are exact in bf16, and their sums below 2^24 in float32
        c = tl.dot(b_x.to(tl.bfloat16), b_w.to(tl.bfloat16).T)
        return acc + c * b_scale[:, None]
    elif ORDERED:
        return tl.inline_asm_elementwise(
            "{ .reg .f32 c; cvt.rn.f32.s32 c, $1; fma.rn.f32 $0, c, $2, $3; }",
            "=f,r,f,f",
            [
                tl.dot(b_x, b_w.T, out_dtype=tl.int32),
                tl.broadcast_to(b_scale[:, None], acc.shape),
                acc,
            ],
            dtype=tl.float32,
            is_pure=False,
            pack=1,
        )
    else:
        c = tl.dot(b_x, b_w.T, out_dtype=tl.int32)
        return acc + c.to(tl.float32) * b_scale[:, None]


@triton.jit
def _store_quantized(p_q, p_so, b_ys, o_m, i_n, M, N, PN: tl.constexpr, PARTS: tl.constexpr):
    """GELU, then one scale a row over the parts, which together are one group of 128."""
    b_us = ()
    b_amax = tl.full(o_m.shape, 1e-8, tl.float32)
    for j in tl.static_range(PARTS):
        b_u = _gelu(b_ys[j])
        b_amax = tl.maximum(b_amax, tl.max(tl.abs(b_u), 1))
        b_us = b_us + (b_u,)
    b_factor = 127.0 / b_amax
    for j in tl.static_range(PARTS):
        o_n = i_n + j * PN + tl.arange(0, PN)
        o_q = o_m[:, None].to(tl.int64) * N + o_n[None, :]
        # The largest is 127 · (1 ± 3e-7): nothing to saturate.
        b_q = (b_us[j] * b_factor[:, None] + ROUNDING).to(tl.int32, bitcast=True).to(tl.int8)
        tl.store(p_q + o_q, b_q, mask=(o_m < M)[:, None])
    o_so = o_m.to(tl.int64) * (N // 128) + i_n // 128
    tl.store(p_so + o_so, b_amax * (1 / 127), mask=o_m < M)


@triton.jit
def _gelu(u):
    """``0.5 u (1 + tanh z) = u / (1 + e^(-2z))`` with ``z = sqrt(2/π) (u + 0.044715 u³)``."""
    if INTERPRETED:
        z = 0.7978845608028654 * (u + 0.044715 * u * u * u)
        return u / (1.0 + tl.exp(-2.0 * z))
    else:
        return tl.inline_asm_elementwise(
            GELU_PAIR, "=f,=f,f,f", [u], dtype=tl.float32, is_pure=True, pack=2
        )
