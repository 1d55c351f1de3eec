"""Where the kernels of 8-bit attention put the keys of a block, as a kernel of its own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from turbodiffusion.ops.sage.prepare import key_at, place


@triton.jit
def places_kernel(p_place, p_key, KEYS: tl.constexpr):
    o_k = tl.arange(0, KEYS)
    tl.store(p_place + o_k, place(o_k))
    tl.store(p_key + o_k, key_at(o_k))


def places(device: str) -> tuple[Tensor, Tensor]:
    """The place of each of 32 keys, and the key at each place."""
    found = torch.empty(2, 32, dtype=torch.int32, device=device)
    places_kernel[(1,)](found[0], found[1], KEYS=32)
    return found[0], found[1]
