"""Kernels of the block map: blocks pooled, the top-k of every row, and the map transposed."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pool_kernel(
    x, pooled, L, N, x_b, x_l, x_n,
    D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """``sum`` or largest magnitude, ``amax``, of the tokens of each block. Grid (B·N, blocks).

    float32 (B·N, blocks, D). Heads are the fastest axis of the grid: neighbours in memory run at
    the same time.
    """
    i_bn, i_block = tl.program_id(0), tl.program_id(1)
    i_b, i_n = (i_bn // N).to(tl.int64), (i_bn % N).to(tl.int64)
    o_d = tl.arange(0, D)
    p_x = x + i_b * x_b + i_n * x_n
    b_pool = tl.zeros((TILE, D), tl.float32)
    for i in range(0, BLOCK, TILE):
        o_l = i_block * BLOCK + i + tl.arange(0, TILE)
        m_l = (o_l < L) & (o_l < (i_block + 1) * BLOCK)
        p_tile = p_x + o_l[:, None].to(tl.int64) * x_l + o_d[None, :]
        b_x = tl.load(p_tile, mask=m_l[:, None], other=0.0).to(tl.float32)
        b_pool = tl.maximum(b_pool, tl.abs(b_x)) if KIND == "amax" else b_pool + b_x
    b_out = tl.max(b_pool, 0) if KIND == "amax" else tl.sum(b_pool, 0)
    i_row = i_bn.to(tl.int64) * tl.num_programs(1) + i_block
    tl.store(pooled + i_row * D + o_d, b_out)


@triton.jit
def select_kernel(scores, blocks, width, kept, WIDTH: tl.constexpr):
    """Indices of the ``kept`` highest scores of a row, ascending, ties to the lower. Grid (rows,).

    Scores become integers of the same order. The kept-th highest is built bit by bit from the top:
    a bit stays when at least ``kept`` scores reach the number so far. What exceeds it is chosen,
    and of what equals it the first ones until ``kept`` are full. A running count gives places.
    """
    i_row = tl.program_id(0).to(tl.int64)
    o_k = tl.arange(0, WIDTH)
    m_k = o_k < width
    b_score = tl.load(scores + i_row * width + o_k, mask=m_k, other=0.0)
    b_score = tl.where(b_score == 0, 0.0, b_score)  # -0 is no less than 0
    b_key = b_score.to(tl.int32, bitcast=True)
    # Negative floats order backwards: flip their magnitude. Lanes past the row come last.
    b_key = tl.where(b_key < 0, b_key ^ 0x7FFFFFFF, b_key)
    b_key = tl.where(m_k, b_key, -0x80000000)
    b_cut = tl.where(tl.sum((b_key >= 0).to(tl.int32), 0) >= kept, 0, -0x80000000)
    for i in tl.static_range(31):
        b_try = b_cut | (1 << (30 - i))
        b_cut = tl.where(tl.sum((b_key >= b_try).to(tl.int32), 0) >= kept, b_try, b_cut)
    m_above = b_key > b_cut
    m_equal = (b_key == b_cut) & m_k
    b_free = kept - tl.sum(m_above.to(tl.int32), 0)
    m_equal = m_equal & (tl.cumsum(m_equal.to(tl.int32), 0) <= b_free)
    m_chosen = m_above | m_equal
    o_place = tl.cumsum(m_chosen.to(tl.int32), 0) - 1
    tl.store(blocks + i_row * kept + o_place, o_k.to(blocks.dtype.element_ty), mask=m_chosen)


@triton.jit
def transpose_kernel(
    chosen_map, offsets, chosen, query_blocks, key_blocks, map_row,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """Query blocks that chose each key block, ascending. Grid (⌈key blocks / TILE_K⌉, B·N).

    ``chosen_map`` int8 (B·N, query blocks, map_row ≥ key blocks) is 1 where a query block chose a
    key block; ``offsets`` (B·N · key blocks + 1,) is where each key block's list begins.
    """
    i_tile, i_bn = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_k = i_tile * TILE_K + tl.arange(0, TILE_K)
    m_k = o_k < key_blocks
    b_place = tl.load(offsets + i_bn * key_blocks + o_k, mask=m_k, other=0)
    p_map = chosen_map + i_bn * query_blocks * map_row
    for i in range(0, query_blocks, TILE_Q):
        o_q = i + tl.arange(0, TILE_Q)
        m_qk = (o_q < query_blocks)[:, None] & m_k[None, :]
        b_map = tl.load(p_map + o_q[:, None] * map_row + o_k[None, :], mask=m_qk, other=0)
        b_count = tl.cumsum(b_map.to(tl.int32), 0)
        p_place = chosen + b_place[None, :] + b_count - 1
        b_q = tl.broadcast_to(o_q[:, None], (TILE_Q, TILE_K))
        tl.store(p_place, b_q, mask=b_map != 0)
        b_place += tl.sum(b_map.to(tl.int32), 0)
