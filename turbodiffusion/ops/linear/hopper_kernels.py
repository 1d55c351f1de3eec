"""The block-scaled int8 product for Hopper, by warps with different tasks.

One warp fills a ring of tiles in shared memory, two groups of four warps empty it; each has half
the rows of the tile. The groups wait for tiles only, never for each other, so they drift apart
until one multiplies while the other promotes, and the tensor cores always have work. Programs
stay on their multiprocessor and take one tile after the other: the next tile is already being
loaded, and often multiplied by the other group, while a group writes its result.

Plain Triton cannot say this (it waits for an int32 product where it was issued, and all warps
meet at a barrier each K block), Gluon can. The definition and the other form of this kernel are
in ``gemm_kernels.py``.
"""

# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from turbodiffusion.ops.linear import gemm_kernels, quantize_kernels

STORE = gl.constexpr(gemm_kernels.STORE.value)
GELU_QUANTIZE = gl.constexpr(gemm_kernels.GELU_QUANTIZE.value)
RESIDUAL = gl.constexpr(gemm_kernels.RESIDUAL.value)
GELU_PAIR = gl.constexpr(gemm_kernels.GELU_PAIR.value)
ROUNDING = gl.constexpr(quantize_kernels.ROUNDING.value)

BM = gl.constexpr(256)
BN = gl.constexpr(128)
PART = gl.constexpr(64)  # rows of one product; a group has two
SUMS = gl.constexpr(
    gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 32])
)
WIDE = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))  # 16 bytes of bf16 a lane
BYTES = gl.constexpr(gl.BlockedLayout([1, 16], [4, 8], [4, 1], [1, 0]))
TILES = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=2)
CONSUMER_REGISTERS = gl.constexpr(240)
PRODUCER_REGISTERS = gl.constexpr(24)


@gluon.jit
def specialised_gemm_kernel(
    x,  # descriptor of int8 (M, K), blocks of BM × 128
    w,  # descriptor of int8 (N, K), blocks of BN × 128
    p_sx,  # from here on as in int8_gemm_kernel
    p_sw,
    p_bias,
    p_residual,
    p_gate,
    p_out,
    p_so,
    M,
    N,
    K,
    L,
    ONE_SAMPLE: gl.constexpr,
    SX_ROWS: gl.constexpr,
    EPILOGUE: gl.constexpr,
    RELEASED: gl.constexpr,
    GROUP_M: gl.constexpr,
    STAGES: gl.constexpr,
):
    xs = gl.allocate_shared_memory(gl.int8, [STAGES, BM, 128], x.layout)
    ws = gl.allocate_shared_memory(gl.int8, [STAGES, BN, 128], w.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES):
        mbarrier.init(full.index(s), count=1)
        mbarrier.init(empty.index(s), count=2)
    data = (p_sx, p_sw, p_bias, p_residual, p_gate, p_out, p_so)
    ring = (xs, ws, full, empty)
    sizes = (M, N, K, L)
    gl.warp_specialize(
        [
            (_consume, (data, ring, sizes, 0, ONE_SAMPLE, SX_ROWS, EPILOGUE, RELEASED, GROUP_M)),
            (_consume, (data, ring, sizes, 1, ONE_SAMPLE, SX_ROWS, EPILOGUE, RELEASED, GROUP_M)),
            (_produce, (x, w, ring, sizes, GROUP_M)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )


@gluon.jit
def _place(i, M, N, GROUP_M: gl.constexpr):
    """First row and column of tile i; see ``tiles.place``."""
    columns = gl.cdiv(N, BN)
    first = i // (GROUP_M * columns) * GROUP_M
    rows = gl.minimum(gl.cdiv(M, BM) - first, GROUP_M)
    i = i % (GROUP_M * columns)
    return (first + i % rows) * BM, i // rows * BN


@gluon.jit
def _produce(x, w, ring, sizes, GROUP_M: gl.constexpr):
    """Load the operands of every K block of every tile as soon as a place in the ring is free."""
    xs, ws, full, empty = ring
    M, N, K, _ = sizes
    STAGES: gl.constexpr = xs.shape[0]
    step = 0
    for tile in range(gl.program_id(0), gl.cdiv(M, BM) * gl.cdiv(N, BN), gl.num_programs(0)):
        i_m, i_n = _place(tile, M, N, GROUP_M)
        for k in range(K // 128):
            s = step % STAGES
            mbarrier.wait(empty.index(s), ((step // STAGES) & 1) ^ 1)
            mbarrier.expect(full.index(s), x.block_type.nbytes + w.block_type.nbytes)
            tma.async_copy_global_to_shared(x, [i_m, k * 128], full.index(s), xs.index(s))
            tma.async_copy_global_to_shared(w, [i_n, k * 128], full.index(s), ws.index(s))
            step += 1


@gluon.jit
def _consume(
    data,
    ring,
    sizes,
    HALF: gl.constexpr,
    ONE_SAMPLE: gl.constexpr,
    SX_ROWS: gl.constexpr,
    EPILOGUE: gl.constexpr,
    RELEASED: gl.constexpr,
    GROUP_M: gl.constexpr,
):
    """Multiply one half of the rows of every tile, and write it."""
    p_sx, p_sw, p_bias, _, _, _, _ = data
    xs, ws, full, empty = ring
    M, N, K, _ = sizes
    STAGES: gl.constexpr = xs.shape[0]
    KB = K // 128
    ROWS: gl.constexpr = gl.SliceLayout(1, SUMS)
    zero = gl.zeros([PART, BN], gl.int32, SUMS)
    step = 0
    for tile in range(gl.program_id(0), gl.cdiv(M, BM) * gl.cdiv(N, BN), gl.num_programs(0)):
        i_m, i_n = _place(tile, M, N, GROUP_M)
        i_m += HALF * 2 * PART
        p_sw_k = p_sw + (i_n // 128).to(gl.int64) * KB
        o_m = gl.minimum(i_m + gl.arange(0, PART, layout=ROWS), M - 1)
        p_scale0 = p_sx + (o_m // SX_ROWS).to(gl.int64) * KB
        o_m = gl.minimum(i_m + PART + gl.arange(0, PART, layout=ROWS), M - 1)
        p_scale1 = p_sx + (o_m // SX_ROWS).to(gl.int64) * KB
        acc0 = gl.zeros([PART, BN], gl.float32, SUMS)
        acc1 = gl.zeros([PART, BN], gl.float32, SUMS)
        for k in range(KB):
            s = step % STAGES
            phase = (step // STAGES) & 1
            scale_w = gl.load(p_sw_k + k)
            b_scale0 = gl.load(p_scale0 + k) * scale_w
            b_scale1 = gl.load(p_scale1 + k) * scale_w
            mbarrier.wait(full.index(s), phase)
            b_w = ws.index(s).permute((1, 0))
            b_x = xs.index(s).slice(HALF * 2 * PART, PART, dim=0)
            c = warpgroup_mma(b_x, b_w, zero, use_acc=False, is_async=True)
            acc0 = _promote(acc0, warpgroup_mma_wait(0, deps=[c]), b_scale0)
            # It passes at once, and ends a basic block: the assembler would otherwise issue the
            # second product before it has promoted the first, for which registers are too few.
            mbarrier.wait(full.index(s), phase)
            b_x = xs.index(s).slice(HALF * 2 * PART + PART, PART, dim=0)
            c = warpgroup_mma(b_x, b_w, zero, use_acc=False, is_async=True)
            c = warpgroup_mma_wait(0, deps=[c])
            mbarrier.arrive(empty.index(s), count=1)
            acc1 = _promote(acc1, c, b_scale1)
            step += 1
        b_bias = gl.zeros([BN], gl.float32, gl.SliceLayout(0, SUMS))
        if p_bias is not None:
            o_n = i_n + gl.arange(0, BN, layout=gl.SliceLayout(0, SUMS))
            if i_m < M:  # ends a basic block: the load would be moved to before the loop
                b_bias = gl.load(p_bias + o_n, mask=o_n < N, other=0.0).to(gl.float32)
        _finish(acc0, b_bias, data, sizes, i_m, i_n, ONE_SAMPLE, EPILOGUE, RELEASED)
        _finish(acc1, b_bias, data, sizes, i_m + PART, i_n, ONE_SAMPLE, EPILOGUE, RELEASED)


@gluon.jit
def _promote(acc, c, b_scale):
    """``acc + float(c) · scale``, kept in its place by a side effect it does not have."""
    b_scale = gl.expand_dims(b_scale, 1).broadcast_to(acc.shape)
    return gl.inline_asm_elementwise(
        "{ .reg .f32 c; cvt.rn.f32.s32 c, $1; fma.rn.f32 $0, c, $2, $3; }",
        "=f,r,f,f",
        [c, gl.convert_layout(b_scale, SUMS), acc],
        dtype=gl.float32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def _finish(
    b_y,
    b_bias,
    data,
    sizes,
    i_m,
    i_n,
    ONE_SAMPLE: gl.constexpr,
    EPILOGUE: gl.constexpr,
    RELEASED: gl.constexpr,
):
    """Bias and epilogue of PART × BN sums, written in 16 bytes a lane."""
    _, _, p_bias, p_residual, p_gate, p_out, p_so = data
    M, N, _, L = sizes
    p_rows = p_out + i_m.to(gl.int64) * N
    ROWS: gl.constexpr = gl.SliceLayout(1, SUMS)
    COLUMNS: gl.constexpr = gl.SliceLayout(0, SUMS)
    o_m = i_m + gl.arange(0, PART, layout=ROWS)
    o_n = i_n + gl.arange(0, BN, layout=COLUMNS)
    if p_bias is not None:
        if RELEASED:
            b_y = b_y.to(p_out.dtype.element_ty).to(gl.float32)
        b_y += gl.expand_dims(b_bias, 0)
    if EPILOGUE == GELU_QUANTIZE:
        b_u = gl.inline_asm_elementwise(
            GELU_PAIR, "=f,=f,f,f", [b_y], dtype=gl.float32, is_pure=True, pack=2
        )
        b_amax = gl.maximum(gl.max(gl.abs(b_u), 1), 1e-8)
        o_so = o_m.to(gl.int64) * (N // 128) + i_n // 128
        gl.store(p_so + o_so, b_amax * (1 / 127), mask=o_m < M)
        b_u = b_u * gl.expand_dims(127.0 / b_amax, 1) + ROUNDING
        b_q = gl.convert_layout(b_u.to(gl.int32, bitcast=True).to(gl.int8), BYTES)
        o_q, m_q = _offsets(i_m, i_n, M, N, BYTES)
        gl.store(p_rows + o_q, b_q, mask=m_q)
    else:
        o_y, m_y = _offsets(i_m, i_n, M, N, WIDE)
        if EPILOGUE == RESIDUAL:
            if p_gate is not None:
                if ONE_SAMPLE:
                    if i_m < M:
                        b_gate = gl.load(p_gate + o_n, mask=o_n < N, other=0.0)
                        b_y *= gl.expand_dims(b_gate.to(gl.float32), 0)
                else:
                    o_gate = gl.expand_dims(o_m // L * N, 1) + gl.expand_dims(o_n, 0)
                    m_gate = gl.expand_dims(o_m < M, 1) & gl.expand_dims(o_n < N, 0)
                    if i_m < M:
                        b_y *= gl.load(p_gate + o_gate, mask=m_gate, other=0.0).to(gl.float32)
            b_residual = gl.load(p_residual + i_m.to(gl.int64) * N + o_y, mask=m_y, other=0.0)
            b_y += gl.convert_layout(b_residual, SUMS).to(gl.float32)
        gl.store(p_rows + o_y, gl.convert_layout(b_y.to(p_out.dtype.element_ty), WIDE), mask=m_y)


@gluon.jit
def _offsets(i_m, i_n, M, N, LAYOUT: gl.constexpr):
    """Offsets from row i_m on, which fit 32 bits and half the registers, and what is inside."""
    o_m = gl.arange(0, PART, layout=gl.SliceLayout(1, LAYOUT))
    o_n = i_n + gl.arange(0, BN, layout=gl.SliceLayout(0, LAYOUT))
    mask = gl.expand_dims(i_m + o_m < M, 1) & gl.expand_dims(o_n < N, 0)
    return gl.expand_dims(o_m * N, 1) + gl.expand_dims(o_n, 0), mask
