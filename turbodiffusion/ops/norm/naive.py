"""Definition of the norms, written out in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from turbodiffusion.ops.linear import Quantized
from turbodiffusion.ops.linear.naive import quantize_group


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    z = x.float()
    z = z * torch.rsqrt((z * z).mean(-1, keepdim=True) + eps)
    return (z * weight.float()).to(x.dtype)


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, released_numerics: bool
) -> Tensor:
    z = x.float()
    mean = z.mean(-1, keepdim=True)
    variance = ((z - mean) ** 2).mean(-1, keepdim=True)
    if released_numerics:
        variance = variance + padding_ratio(x.shape[-1]) * mean**2
    z = (z - mean) * torch.rsqrt(variance + eps)
    if weight is not None:
        z = z * weight.float()
    if bias is not None:
        z = z + bias.float()
    return z.to(x.dtype)


def layer_norm_modulate(x_BLD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor, eps: float) -> Tensor:
    n_BLD = layer_norm(x_BLD, None, None, eps, False).float()
    return (n_BLD * (1 + scale_B1D.float()) + shift_B1D.float()).to(x_BLD.dtype)


def layer_norm_quantize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Quantized:
    n = layer_norm(x.float(), weight, bias, eps, False)
    return Quantized(*quantize_group(n.flatten(0, -2)))


def layer_norm_modulate_quantize(
    x_BLD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor, eps: float
) -> Quantized:
    y_BLD = layer_norm_modulate(x_BLD.float(), scale_B1D, shift_B1D, eps)
    return Quantized(*quantize_group(y_BLD.flatten(0, -2)))


def padding_ratio(width: int) -> float:
    """(P - D)/D with P the next power of two: 1/3 for 1536, 0.6 for 5120."""
    return ((1 << (width - 1).bit_length()) - width) / width
