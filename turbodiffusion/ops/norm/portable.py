"""The norms with PyTorch's fused kernels: cast up, normalise, cast down.

The kernels are given float32 on purpose. Their half-precision forms keep the row statistics in
bf16 for the backward pass on some devices, and refuse a weight of another dtype on others. A CPU
has no fused RMS norm: there the mean square comes from PyTorch's vector norm, in one pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbodiffusion.ops.linear import Quantized
from turbodiffusion.ops.linear.portable import quantize_group
from turbodiffusion.ops.norm import naive


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        z = x.float()
        length = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        return (z * torch.rsqrt(length**2 / x.shape[-1] + eps) * weight.float()).to(x.dtype)
    return F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps).to(x.dtype)


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, released_numerics: bool
) -> Tensor:
    if released_numerics:  # a comparison aid: no kernel computes this variance
        return naive.layer_norm(x, weight, bias, eps, True)
    weight = None if weight is None else weight.float()
    bias = None if bias is None else bias.float()
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(x.dtype)


def layer_norm_modulate(x_BLD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor, eps: float) -> Tensor:
    n_BLD = layer_norm(x_BLD, None, None, eps, False).float()
    return torch.addcmul(shift_B1D.float(), n_BLD, 1 + scale_B1D.float()).to(x_BLD.dtype)


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
