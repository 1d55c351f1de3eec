"""Linears by the vendor's matrix products.

The int8 product is computed on the integers in float32: a K block of 128 sums to at most 2²¹, so
every partial sum is exact, and one batched pass per K block keeps the definition's order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbodiffusion.ops.linear.naive import BLOCK, FLOOR, finish


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def quantize_tile(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    return _quantize(x_MK, BLOCK, 128.0)


def quantize_group(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    return _quantize(x_MK, 1, 127.0)


def int8_linear(
    x: Tensor, int8_weight: Tensor, scale: Tensor, bias: Tensor | None, activation: str
) -> Tensor:
    x_MK = x.reshape(-1, x.shape[-1])
    rows = BLOCK if activation == "tile" else 1
    q_MK, scale_x = (quantize_tile if activation == "tile" else quantize_group)(x_MK)
    m, k = q_MK.shape
    n = int8_weight.shape[0]
    scale_x = scale_x.repeat_interleave(rows, 0)[:m]
    scale_w = scale.repeat_interleave(BLOCK, 0)[:n]
    a_MK, b_NK = q_MK.float(), int8_weight.float()
    acc_MN = torch.zeros(m, n, dtype=torch.float32, device=x.device)
    for block in range(k // BLOCK):
        columns = slice(block * BLOCK, (block + 1) * BLOCK)
        dot_MN = a_MK[:, columns] @ b_NK[:, columns].mT
        acc_MN.addcmul_(dot_MN, scale_x[:, block, None] * scale_w[None, :, block])
    return finish(acc_MN, bias, x.dtype, activation).view(*x.shape[:-1], n)


def _quantize(x_MK: Tensor, rows: int, factor: float) -> tuple[Tensor, Tensor]:
    m, k = x_MK.shape
    x = F.pad(x_MK.float(), (0, -k % BLOCK, 0, -m % rows))
    tiles = x.view(x.shape[0] // rows, rows, x.shape[1] // BLOCK, BLOCK)
    amax = tiles.abs().amax((1, 3), keepdim=True).clamp_min(FLOOR)
    q = (tiles * (factor / amax)).round_().clamp_(-128, 127).to(torch.int8)
    return q.view(x.shape)[:m, :k].contiguous(), (amax / factor)[:, 0, :, 0]
