"""What the matrix products share: which tile a program computes, and how it reads operands."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(i, ROWS, COLUMNS, GROUP_M: tl.constexpr):
    """Tile of program i, by groups of GROUP_M tile rows: programs that run together share operands.

    Without the groups a wave would read one panel of x and the whole weight, which for 14B is
    larger than the cache of an H200.
    """
    first = i // (GROUP_M * COLUMNS) * GROUP_M
    rows = tl.minimum(ROWS - first, GROUP_M)
    i = i % (GROUP_M * COLUMNS)
    return first + i % rows, i // rows


@triton.jit
def part(
    source,
    i_row,
    i_k,
    COUNT,
    K,
    ROWS: tl.constexpr,
    BK: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """ROWS × BK of an operand with COUNT rows. What lies past the last row is never stored."""
    if DESCRIPTORS:
        return source.load([i_row, i_k])
    else:
        o_row = tl.minimum(i_row + tl.arange(0, ROWS), COUNT - 1).to(tl.int64)
        return tl.load(source + o_row[:, None] * K + (i_k + tl.arange(0, BK))[None, :])
