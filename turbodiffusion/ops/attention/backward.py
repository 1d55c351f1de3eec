"""Attention backward kernels: dq by tiles of queries, dk and dv by tiles of keys.

Weights are computed again as ``2^(S - LSE)``. With ``delta = rowsum(o · g)`` the gradient of the
scores is ``dS = P (g vᵀ - delta)``. ``query_kernel`` walks the list of key blocks as the forward
does. ``key_kernel`` walks the transposed list: the query blocks that chose a key block, stored one
key block after the other (``offsets``, ``chosen``). Nothing is added atomically, so gradients are
the same in every run. Where ``ADD`` is set the output already holds the linear branch's share.
"""

from __future__ import annotations

import triton
import triton.language as tl

from turbodiffusion.ops.attention.forward import listed_block, tile_mask, tile_pointers


@triton.jit
def query_kernel(
    q, k, v, g, dq, lse, delta, lists, counts,
    scale, L, S, N, tiles, kept,
    q_b, q_l, q_n, k_b, k_l, k_n, v_b, v_l, v_n, g_b, g_l, g_n, dq_b, dq_l, dq_n,
    D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, SPLIT: tl.constexpr,
    SPARSE: tl.constexpr, COUNTED: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks × ``tiles`` a block, B·N)."""
    i_tile, i_bn = tl.program_id(0), tl.program_id(1)
    i_b, i_n = (i_bn // N).to(tl.int64), (i_bn % N).to(tl.int64)
    i_block = i_tile // tiles
    o_q = i_block * BLOCK_Q + (i_tile % tiles) * TILE_Q + tl.arange(0, TILE_Q)
    m_q = (o_q < L) & (o_q < (i_block + 1) * BLOCK_Q)
    o_d = tl.arange(0, D)
    o_row = o_q[:, None].to(tl.int64)
    p_k, p_v = k + i_b * k_b + i_n * k_n, v + i_b * v_b + i_n * v_n
    i_row = i_bn.to(tl.int64) * (tl.num_programs(0) // tiles) + i_block
    p_list = lists + i_row * kept
    entries = kept * SPLIT
    if COUNTED:
        entries = tl.load(counts + i_row).to(tl.int32) * SPLIT

    p_q = q + i_b * q_b + i_n * q_n + o_row * q_l + o_d[None, :]
    p_g = g + i_b * g_b + i_n * g_n + o_row * g_l + o_d[None, :]
    b_q = tl.load(p_q, mask=m_q[:, None], other=0.0)
    b_g = tl.load(p_g, mask=m_q[:, None], other=0.0)
    b_lse = tl.load(lse + i_bn.to(tl.int64) * L + o_q, mask=m_q, other=0.0)
    b_delta = tl.load(delta + i_bn.to(tl.int64) * L + o_q, mask=m_q, other=0.0)
    b_dq = tl.zeros((TILE_Q, D), tl.float32)

    b_next = listed_block(p_list, 0, SPLIT, SPARSE)
    for i in range(entries):
        m_k = tile_mask(b_next, b_next, i, entries, S, BLOCK_K, TILE_K, SPLIT, 1)
        b_k = tl.load(
            tile_pointers(p_k, b_next, b_next, i, k_l, D, BLOCK_K, TILE_K, SPLIT, 1),
            mask=m_k[:, None], other=0.0,
        )  # fmt: skip
        b_v = tl.load(
            tile_pointers(p_v, b_next, b_next, i, v_l, D, BLOCK_K, TILE_K, SPLIT, 1),
            mask=m_k[:, None], other=0.0,
        )  # fmt: skip
        b_next = listed_block(p_list, tl.minimum(i + 1, kept * SPLIT - 1), SPLIT, SPARSE)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
        b_p = tl.where(m_k[None, :], tl.exp2(b_s * scale - b_lse[:, None]), 0.0)
        b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PRECISION)
        b_ds = b_p * (b_dp - b_delta[:, None])
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION)

    b_dq = b_dq * (scale * 0.6931471805599453)  # log2(e) out again
    p_dq = dq + i_b * dq_b + i_n * dq_n + o_row * dq_l + o_d[None, :]
    if ADD:
        b_dq += tl.load(p_dq, mask=m_q[:, None], other=0.0).to(tl.float32)
    tl.store(p_dq, b_dq.to(dq.dtype.element_ty), mask=m_q[:, None])


@triton.jit
def key_kernel(
    q, k, v, g, dk, dv, lse, delta, offsets, chosen,
    scale, L, S, N, tiles, query_blocks,
    q_b, q_l, q_n, k_b, k_l, k_n, v_b, v_l, v_n, g_b, g_l, g_n,
    dk_b, dk_l, dk_n, dv_b, dv_l, dv_n,
    D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, SPLIT: tl.constexpr,
    SPARSE: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (key blocks × ``tiles`` a block, B·N). ``SPLIT`` query tiles make a query block."""
    i_tile, i_bn = tl.program_id(0), tl.program_id(1)
    i_b, i_n = (i_bn // N).to(tl.int64), (i_bn % N).to(tl.int64)
    i_block = i_tile // tiles
    o_k = i_block * BLOCK_K + (i_tile % tiles) * TILE_K + tl.arange(0, TILE_K)
    m_k = (o_k < S) & (o_k < (i_block + 1) * BLOCK_K)
    o_d = tl.arange(0, D)
    o_row = o_k[:, None].to(tl.int64)
    p_q, p_g = q + i_b * q_b + i_n * q_n, g + i_b * g_b + i_n * g_n
    p_lse, p_delta = lse + i_bn.to(tl.int64) * L, delta + i_bn.to(tl.int64) * L

    p_list = chosen
    entries = query_blocks * SPLIT
    if SPARSE:
        p_offset = offsets + i_bn.to(tl.int64) * (tl.num_programs(0) // tiles) + i_block
        begin = tl.load(p_offset)
        p_list = chosen + begin
        entries = (tl.load(p_offset + 1) - begin).to(tl.int32) * SPLIT

    p_k = k + i_b * k_b + i_n * k_n + o_row * k_l + o_d[None, :]
    p_v = v + i_b * v_b + i_n * v_n + o_row * v_l + o_d[None, :]
    b_k = tl.load(p_k, mask=m_k[:, None], other=0.0)
    b_v = tl.load(p_v, mask=m_k[:, None], other=0.0)
    b_dk = tl.zeros((TILE_K, D), tl.float32)
    b_dv = tl.zeros((TILE_K, D), tl.float32)
    for i in range(entries):
        b_block = listed_block(p_list, i, SPLIT, SPARSE)
        # Queries that are not there are zero, and so is their gradient: they add nothing.
        m_q = tile_mask(b_block, b_block, i, entries, L, BLOCK_Q, TILE_Q, SPLIT, 1)
        o_q = b_block * BLOCK_Q + (i % SPLIT) * TILE_Q + tl.arange(0, TILE_Q)
        b_q = tl.load(
            tile_pointers(p_q, b_block, b_block, i, q_l, D, BLOCK_Q, TILE_Q, SPLIT, 1),
            mask=m_q[:, None], other=0.0,
        )  # fmt: skip
        b_g = tl.load(
            tile_pointers(p_g, b_block, b_block, i, g_l, D, BLOCK_Q, TILE_Q, SPLIT, 1),
            mask=m_q[:, None], other=0.0,
        )  # fmt: skip
        b_lse = tl.load(p_lse + o_q, mask=m_q, other=0.0)
        b_delta = tl.load(p_delta + o_q, mask=m_q, other=0.0)
        # [TILE_K, TILE_Q]
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)
        b_p = tl.exp2(b_s * scale - b_lse[None, :])
        b_dv = tl.dot(b_p.to(b_g.dtype), b_g, b_dv, input_precision=PRECISION)
        b_dp = tl.dot(b_v, tl.trans(b_g), input_precision=PRECISION)
        b_ds = b_p * (b_dp - b_delta[None, :])
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision=PRECISION)

    b_dk = b_dk * (scale * 0.6931471805599453)
    p_dk = dk + i_b * dk_b + i_n * dk_n + o_row * dk_l + o_d[None, :]
    p_dv = dv + i_b * dv_b + i_n * dv_n + o_row * dv_l + o_d[None, :]
    if ADD:
        b_dk += tl.load(p_dk, mask=m_k[:, None], other=0.0).to(tl.float32)
        b_dv += tl.load(p_dv, mask=m_k[:, None], other=0.0).to(tl.float32)
    tl.store(p_dk, b_dk.to(dk.dtype.element_ty), mask=m_k[:, None])
    tl.store(p_dv, b_dv.to(dv.dtype.element_ty), mask=m_k[:, None])
