"""Attention forward kernel: each tile of queries meets the key blocks of a list, or all of them.

One kernel is the sparse branch of SLA, with the linear branch in its epilogue, and dense attention,
whose list is every block. A list is ascending, so only its last entry can hold the short last block
of keys: with ``PEEL`` that entry is visited first and masked, and the loop over the others needs no
mask. That is for GPUs whose matrix units wait for the softmax; elsewhere a mask costs nothing and
the second copy of the body costs registers. The
softmax runs in base 2 with the scale folded into one multiplication, sums and products in float32.

The rows of a tile are cut into ``PARTS`` that share the keys: with two of 64 rows four warps have
registers for 128 rows, and two programs fit a Hopper multiprocessor, one's products beside the
other's softmax, without reading keys and values twice as often.

The unit of a list is a *block* of ``BLOCK_K`` keys, that of a product a *tile* of ``TILE_K`` keys:
either ``SPLIT`` tiles make a block, or ``GROUP`` (1 or 2) blocks make a tile. In the loop the next
block's index is fetched one turn ahead, which keeps its latency out of the address arithmetic.
"""

# Tuples grow by addition, since Triton knows no unpacking; each stage of a loop has its own type.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def feature_tile(b_x, FEATURE: tl.constexpr):
    """The feature map φ over the head width of a float32 tile [rows, D].

    Exponentials in base 2 and one division a row: ``exp`` and a division for each element, which
    also take denormal numbers, are 12 instructions more.
    """
    if FEATURE == "softmax":
        b_x = tl.exp2((b_x - tl.max(b_x, 1)[:, None]) * LOG2E)
        b_x = b_x * (1.0 / tl.sum(b_x, 1))[:, None]
    elif FEATURE == "elu":
        b_x = tl.where(b_x > 0, b_x + 1, tl.exp2(tl.minimum(b_x, 0) * LOG2E))
    elif FEATURE == "relu":
        b_x = tl.maximum(b_x, 0)
    return b_x


@triton.jit
def listed_block(p_list, i_entry, SPLIT: tl.constexpr, SPARSE: tl.constexpr):
    """Block of an entry; without a list entry ``i`` is block ``i``."""
    if SPARSE:
        return tl.load(p_list + i_entry // SPLIT).to(tl.int32)
    else:
        return i_entry // SPLIT


@triton.jit
def tile_pointers(
    p_x, b_first, b_second, i_entry, stride, D: tl.constexpr,
    BLOCK_K: tl.constexpr, TILE_K: tl.constexpr, SPLIT: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Pointers [TILE_K, D] to the tokens of an entry (of two entries when ``GROUP`` is 2)."""
    o_k, o_d = tl.arange(0, TILE_K), tl.arange(0, D)
    row = (b_first * BLOCK_K + (i_entry % SPLIT) * TILE_K).to(tl.int64)
    if GROUP == 2:
        other = b_second.to(tl.int64) * BLOCK_K - BLOCK_K
        row = tl.where(o_k < BLOCK_K, row, other)[:, None]
    return p_x + row * stride + (o_k[:, None] * stride + o_d[None, :])


@triton.jit
def tile_mask(
    b_first, b_second, i_entry, entries, S,
    BLOCK_K: tl.constexpr, TILE_K: tl.constexpr, SPLIT: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Which keys of the tile exist: inside their block, inside the sequence, listed at all."""
    o_k = tl.arange(0, TILE_K)
    if GROUP == 2:
        token = tl.where(o_k < BLOCK_K, b_first * BLOCK_K, b_second * BLOCK_K - BLOCK_K) + o_k
        return (token < S) & (i_entry + o_k // BLOCK_K < entries)
    else:
        inside = (i_entry % SPLIT) * TILE_K + o_k
        return (b_first * BLOCK_K + inside < S) & (inside < BLOCK_K) & (i_entry < entries)


@triton.jit
def attend_tile(
    b_qs, outs, tops, sums, b_k, b_v, m_k, scale,
    PARTS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys and values in the online softmax of all parts of the rows.

    ``tops`` are finite from the start, so that the weights of keys that are not there are zero.
    """
    new_outs = ()
    new_tops = ()
    new_sums = ()
    for j in tl.static_range(PARTS):
        b_s = tl.dot(b_qs[j], tl.trans(b_k), input_precision=PRECISION)
        if MASKED:
            b_s = tl.where(m_k[None, :], b_s, float("-inf"))
        b_new = tl.maximum(tops[j], tl.max(b_s, 1) * scale)
        b_p = tl.exp2(b_s * scale - b_new[:, None])
        b_a = tl.exp2(tops[j] - b_new)
        b_o = outs[j] * b_a[:, None]
        b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o, input_precision=PRECISION)
        new_outs = new_outs + (b_o,)
        new_tops = new_tops + (b_new,)
        new_sums = new_sums + (sums[j] * b_a + tl.sum(b_p, 1),)
    return new_outs, new_tops, new_sums


@triton.jit
def attend_kernel(
    q, k, v, o, lse, lists, counts, state, key_sum, unit, bias,
    scale, L, S, N, tiles, kept,
    q_b, q_l, q_n, k_b, k_l, k_n, v_b, v_l, v_n, o_b, o_l, o_n,
    D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, SPLIT: tl.constexpr, GROUP: tl.constexpr,
    PARTS: tl.constexpr, SPARSE: tl.constexpr, COUNTED: tl.constexpr, PEEL: tl.constexpr,
    LINEAR: tl.constexpr, FEATURE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks × ``tiles`` a block, B·N).

    ``lists`` (B·N, query blocks, kept) and ``counts`` (B·N, query blocks) belong to ``SPARSE`` and
    ``COUNTED``; ``state`` (2, B·N, D, D), ``key_sum`` (B·N, D), ``unit`` (B·N,) and ``bias`` (D,)
    to ``LINEAR``. ``scale`` is log2(e) / √D. ``PEEL`` visits the last tile of the list by itself
    and needs blocks that fill their tiles; without it every tile is masked.
    """
    i_tile, i_bn = tl.program_id(0), tl.program_id(1)
    i_b, i_n = (i_bn // N).to(tl.int64), (i_bn % N).to(tl.int64)
    ROWS: tl.constexpr = TILE_Q // PARTS
    i_block = i_tile // tiles
    first = i_block * BLOCK_Q + (i_tile % tiles) * TILE_Q
    end = tl.minimum(L, (i_block + 1) * BLOCK_Q)
    o_d = tl.arange(0, D)
    p_q = q + i_b * q_b + i_n * q_n
    p_k, p_v = k + i_b * k_b + i_n * k_n, v + i_b * v_b + i_n * v_n
    i_row = i_bn.to(tl.int64) * (tl.num_programs(0) // tiles) + i_block
    p_list = lists + i_row * kept
    entries = kept * SPLIT
    if COUNTED:
        entries = tl.load(counts + i_row).to(tl.int32) * SPLIT
    last = kept * SPLIT - 1  # the last entry that can be read

    b_qs = ()
    outs = ()
    tops = ()
    sums = ()
    for j in tl.static_range(PARTS):
        o_q = first + j * ROWS + tl.arange(0, ROWS)
        p_rows = p_q + o_q[:, None].to(tl.int64) * q_l + o_d[None, :]
        b_qs = b_qs + (tl.load(p_rows, mask=(o_q < end)[:, None], other=0.0),)  # [ROWS, D]
        outs = outs + (tl.zeros((ROWS, D), tl.float32),)
        tops = tops + (tl.full((ROWS,), -1e30, tl.float32),)
        sums = sums + (tl.zeros((ROWS,), tl.float32),)
    turns = (entries + GROUP - 1) // GROUP
    if PEEL:
        turns = tl.maximum(entries - 1, 0) // GROUP
        i_last = turns * GROUP
        b_first = listed_block(p_list, i_last, SPLIT, SPARSE)
        b_second = b_first
        if GROUP == 2:
            b_second = listed_block(p_list, tl.minimum(i_last + 1, last), SPLIT, SPARSE)
        m_last = tile_mask(b_first, b_second, i_last, entries, S, BLOCK_K, TILE_K, SPLIT, GROUP)
        b_k_last = tl.load(
            tile_pointers(p_k, b_first, b_second, i_last, k_l, D, BLOCK_K, TILE_K, SPLIT, GROUP),
            mask=m_last[:, None], other=0.0,
        )  # fmt: skip
        b_v_last = tl.load(
            tile_pointers(p_v, b_first, b_second, i_last, v_l, D, BLOCK_K, TILE_K, SPLIT, GROUP),
            mask=m_last[:, None], other=0.0,
        )  # fmt: skip
        outs, tops, sums = attend_tile(
            b_qs, outs, tops, sums, b_k_last, b_v_last, m_last, scale, PARTS, True, PRECISION
        )

    b_first = listed_block(p_list, 0, SPLIT, SPARSE)
    b_second = b_first
    if GROUP == 2:
        b_second = listed_block(p_list, tl.minimum(1, last), SPLIT, SPARSE)
    for i in range(turns):
        i_entry = i * GROUP
        p_k_tile = tile_pointers(
            p_k, b_first, b_second, i_entry, k_l, D, BLOCK_K, TILE_K, SPLIT, GROUP
        )
        p_v_tile = tile_pointers(
            p_v, b_first, b_second, i_entry, v_l, D, BLOCK_K, TILE_K, SPLIT, GROUP
        )
        m_k = tile_mask(b_first, b_second, i_entry, entries, S, BLOCK_K, TILE_K, SPLIT, GROUP)
        if PEEL:
            b_k, b_v = tl.load(p_k_tile), tl.load(p_v_tile)
        else:
            b_k = tl.load(p_k_tile, mask=m_k[:, None], other=0.0)
            b_v = tl.load(p_v_tile, mask=m_k[:, None], other=0.0)
        # What is fetched in the last turn is not used: any entry will do.
        b_first = listed_block(p_list, tl.minimum(i_entry + GROUP, last), SPLIT, SPARSE)
        if GROUP == 2:
            b_second = listed_block(p_list, tl.minimum(i_entry + 3, last), SPLIT, SPARSE)
        outs, tops, sums = attend_tile(
            b_qs, outs, tops, sums, b_k, b_v, m_k, scale, PARTS, not PEEL, PRECISION
        )

    p_o = o + i_b * o_b + i_n * o_n
    for j in tl.static_range(PARTS):
        o_q = first + j * ROWS + tl.arange(0, ROWS)
        m_q = o_q < end
        o_row = o_q[:, None].to(tl.int64)
        tl.store(lse + i_bn.to(tl.int64) * L + o_q, tops[j] + tl.log2(sums[j]), mask=m_q)
        b_l = tl.where(sums[j] > 0, sums[j], 1.0)
        if LINEAR:
            # The numerator of the linear branch is added to a sum that already waits for its
            # division. Loaded anew: kept from before the loop, the tile would fill registers.
            b_x = tl.load(
                p_q + o_row * q_l + o_d[None, :], mask=m_q[:, None], other=0.0,
                eviction_policy="evict_first",
            )  # fmt: skip
            b_phi = feature_tile(b_x.to(tl.float32), FEATURE).to(b_x.dtype)
            b_sum = tl.load(key_sum + i_bn * D + o_d)
            b_z = (tl.sum(b_phi.to(tl.float32) * b_sum[None, :], 1) + 1e-5) * tl.load(unit + i_bn)
            b_o = outs[j] * (b_z / b_l)[:, None]
            o_s = i_bn * D * D + o_d[:, None] * D + o_d[None, :]
            b_o = tl.dot(b_phi, tl.load(state + o_s), b_o, input_precision=PRECISION)
            if b_x.dtype != tl.float32:
                rest = state + tl.num_programs(1).to(tl.int64) * D * D
                b_o = tl.dot(b_phi, tl.load(rest + o_s), b_o, input_precision=PRECISION)
            b_o = b_o / b_z[:, None] + tl.load(bias + o_d)[None, :]
        else:
            b_o = outs[j] * (1.0 / b_l)[:, None]
        p_rows = p_o + o_row * o_l + o_d[None, :]
        tl.store(p_rows, b_o.to(o.dtype.element_ty), mask=m_q[:, None])
