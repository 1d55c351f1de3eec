"""Definition of the linears, block by block.

Integer products are summed in float64, exact, since PyTorch has no int32 product on GPUs; they are
converted to float32 (exact: at most 128³ = 2²¹) and added to the accumulator K block by K block in
ascending order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
FLOOR = 1e-8
FP8 = torch.float8_e4m3fn
FP8_LARGEST = 448.0


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = x.float() @ weight.float().mT
    if bias is not None:
        out = out + bias.float()
    return out.to(x.dtype)


def quantize_tile(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    return _quantize(x_MK, BLOCK, 128.0)


def quantize_group(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    return _quantize(x_MK, 1, 127.0)


def int8_matmul(
    q_MK: Tensor,
    scale_x: Tensor,
    weight_NK: Tensor,
    scale_w: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    released: bool,
) -> Tensor:
    acc_MN = _product(q_MK, scale_x, weight_NK, scale_w)
    if bias is None:
        return acc_MN.to(dtype)
    if released:
        return acc_MN.to(dtype) + bias.to(dtype)
    return (acc_MN + bias.float()).to(dtype)


def int8_linear_gelu(
    q_MK: Tensor, scale_x: Tensor, weight_NK: Tensor, scale_w: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    y_MN = int8_matmul(q_MK, scale_x, weight_NK, scale_w, bias, torch.float32, False)
    return quantize_group(F.gelu(y_MN, approximate="tanh"))


def int8_linear_residual(
    q_MK: Tensor,
    scale_x: Tensor,
    weight_NK: Tensor,
    scale_w: Tensor,
    bias: Tensor | None,
    residual_BLN: Tensor,
    gate_B1N: Tensor | None,
) -> Tensor:
    y_MN = int8_matmul(q_MK, scale_x, weight_NK, scale_w, bias, torch.float32, False)
    y_BLN = y_MN.view(residual_BLN.shape)
    if gate_B1N is not None:
        y_BLN = y_BLN * gate_B1N.float()
    return (residual_BLN.float() + y_BLN).to(residual_BLN.dtype)


def quantize_fp8(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    x = x_MK.float()
    scale_M = x.abs().amax(1).clamp_min(FLOOR) / FP8_LARGEST
    return (x / scale_M[:, None]).clamp(-FP8_LARGEST, FP8_LARGEST).to(FP8), scale_M


def fp8_linear(x_MK: Tensor, weight_NK: Tensor, scale_N: Tensor, bias: Tensor | None) -> Tensor:
    q_MK, scale_M = quantize_fp8(x_MK)
    acc_MN = q_MK.float() @ weight_NK.float().mT
    out = acc_MN * (scale_M[:, None] * scale_N)
    return (out if bias is None else out + bias.float()).to(x_MK.dtype)


def _product(q_MK: Tensor, scale_x: Tensor, weight_NK: Tensor, scale_w: Tensor) -> Tensor:
    (m, k), n = q_MK.shape, weight_NK.shape[0]
    scale_x = spread(scale_x, m)
    scale_w = spread(scale_w, n)
    acc_MN = torch.zeros(m, n, dtype=torch.float32, device=q_MK.device)
    for block in range(k // BLOCK):
        columns = slice(block * BLOCK, (block + 1) * BLOCK)
        dot_MN = q_MK[:, columns].double() @ weight_NK[:, columns].double().mT
        acc_MN += dot_MN.float() * (scale_x[:, block, None] * scale_w[None, :, block])
    return acc_MN


def spread(scale: Tensor, rows: int) -> Tensor:
    """The scales row by row, whether they were given for each row or for each 128 of them."""
    return scale if scale.shape[0] == rows else scale.repeat_interleave(BLOCK, 0)[:rows]


def _quantize(x_MK: Tensor, rows: int, factor: float) -> tuple[Tensor, Tensor]:
    m, k = x_MK.shape
    q_MK = torch.empty(m, k, dtype=torch.int8, device=x_MK.device)
    scale = torch.empty(-(-m // rows), -(-k // BLOCK), dtype=torch.float32, device=x_MK.device)
    limit = torch.tensor(factor, device=x_MK.device)  # tensor / tensor is rounded once
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            block = slice(i * rows, (i + 1) * rows), slice(j * BLOCK, (j + 1) * BLOCK)
            x = x_MK[block].float()
            amax = x.abs().max().clamp_min(FLOOR)
            q_MK[block] = (x * (limit / amax)).round().clamp(-128, 127).to(torch.int8)
            scale[i, j] = amax / factor
    return q_MK, scale
