"""The e4m3 product with a scale for each row of either operand."""

from __future__ import annotations

import triton
import triton.language as tl

from turbodiffusion.ops.linear.tiles import part, place


@triton.jit
def fp8_gemm_kernel(
    x,  # e4m3 (M, K): a pointer, or a descriptor with blocks of BM × BK
    w,  # e4m3 (N, K), alike with BN
    p_sx,  # float32 (M,)
    p_sw,  # float32 (N,)
    p_bias,  # (N,) or None
    p_out,  # (M, N)
    M,
    N,
    K,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP_M: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Scales are constant along K, so the tensor cores accumulate from end to end."""
    i_m, i_n = place(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP_M)
    i_m, i_n = i_m * BM, i_n * BN
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        b_x = part(x, i_m, k, M, K, BM, BK, DESCRIPTORS)
        b_w = part(w, i_n, k, N, K, BN, BK, DESCRIPTORS)
        acc = tl.dot(b_x, b_w.T, acc)
    o_m = i_m + tl.arange(0, BM)
    o_n = i_n + tl.arange(0, BN)
    b_sx = tl.load(p_sx + o_m, mask=o_m < M, other=0.0)
    b_sw = tl.load(p_sw + o_n, mask=o_n < N, other=0.0)
    acc *= b_sx[:, None] * b_sw[None, :]
    if p_bias is not None:
        acc += tl.load(p_bias + o_n, mask=o_n < N, other=0.0).to(tl.float32)[None, :]
    o_y = o_m[:, None].to(tl.int64) * N + o_n[None, :]
    m_y = (o_m < M)[:, None] & (o_n < N)[None, :]
    tl.store(p_out + o_y, acc.to(p_out.dtype.element_ty), mask=m_y)
