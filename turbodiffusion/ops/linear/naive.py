"""Definition of the linears, block by block.

Integer products are summed in int32 (exact), converted to float32 (exact: at most 128³ = 2²¹) and
added to the accumulator K block by K block in ascending order.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
FLOOR = 1e-8


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = x.float() @ weight.float().mT
    if bias is not None:
        out = out + bias.float()
    return out.to(x.dtype)


def quantize_tile(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    return _quantize(x_MK, BLOCK, 128.0)


def quantize_group(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    return _quantize(x_MK, 1, 127.0)


def int8_linear(
    x: Tensor, int8_weight: Tensor, scale: Tensor, bias: Tensor | None, activation: str
) -> Tensor:
    x_MK = x.flatten(0, -2)
    rows = BLOCK if activation == "tile" else 1
    q_MK, scale_x = (quantize_tile if activation == "tile" else quantize_group)(x_MK)
    m, k = q_MK.shape
    n = int8_weight.shape[0]
    scale_x = scale_x.repeat_interleave(rows, 0)[:m]
    scale_w = scale.repeat_interleave(BLOCK, 0)[:n]
    acc_MN = torch.zeros(m, n, dtype=torch.float32, device=x.device)
    for block in range(k // BLOCK):
        columns = slice(block * BLOCK, (block + 1) * BLOCK)
        dot_MN = q_MK[:, columns].int() @ int8_weight[:, columns].int().mT
        acc_MN += dot_MN.float() * (scale_x[:, block, None] * scale_w[None, :, block])
    return finish(acc_MN, bias, x.dtype, activation).unflatten(0, x.shape[:-1])


def finish(acc_MN: Tensor, bias: Tensor | None, dtype: torch.dtype, activation: str) -> Tensor:
    """Add the bias: after a rounding in the released path, before the only one otherwise."""
    if bias is None:
        return acc_MN.to(dtype)
    if activation == "tile":
        return acc_MN.to(dtype) + bias.to(dtype)
    return (acc_MN + bias.float()).to(dtype)


def _quantize(x_MK: Tensor, rows: int, factor: float) -> tuple[Tensor, Tensor]:
    m, k = x_MK.shape
    q_MK = torch.empty(m, k, dtype=torch.int8, device=x_MK.device)
    scale = torch.empty(-(-m // rows), -(-k // BLOCK), dtype=torch.float32, device=x_MK.device)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            block = slice(i * rows, (i + 1) * rows), slice(j * BLOCK, (j + 1) * BLOCK)
            x = x_MK[block].float()
            amax = x.abs().max().clamp_min(FLOOR)
            q_MK[block] = (x * (factor / amax)).round().clamp(-128, 127).to(torch.int8)
            scale[i, j] = amax / factor
    return q_MK, scale
