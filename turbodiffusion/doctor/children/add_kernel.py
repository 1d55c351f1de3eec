"""The smallest kernel that proves Triton's compiler, assembler and launcher."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add(x, y, out, count, SIZE: tl.constexpr):
    """``out = x + y`` for ``count`` floats, SIZE of them a program."""
    o_n = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    m_n = o_n < count
    tl.store(out + o_n, tl.load(x + o_n, mask=m_n) + tl.load(y + o_n, mask=m_n), mask=m_n)
