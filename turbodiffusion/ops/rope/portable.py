"""The rotation: a product of complex numbers on a CPU, real arithmetic elsewhere.

The compiler, and GPUs through it, fuse real arithmetic well. Left to itself a CPU makes eight
passes of it, half of them with a stride: 2304 tokens of 4 heads of 64 take 2.0 ms on one core
against 0.25 ms of the complex product, which gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turbodiffusion.ops.norm.portable import rms_norm


def apply_rope(x_BLND: Tensor, cos_LP: Tensor, sin_LP: Tensor) -> Tensor:
    if x_BLND.device.type == "cpu" and not torch.compiler.is_compiling():
        z_BLNP = torch.view_as_complex(x_BLND.float().contiguous().unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(z_BLNP * torch.complex(cos_LP, sin_LP)[:, None])
        return turned.flatten(-2).to(x_BLND.dtype)
    even, odd = x_BLND.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_LP[:, None], sin_LP[:, None]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x_BLND.dtype)


def rms_norm_rope(
    x_BLD: Tensor, weight: Tensor, cos_LP: Tensor, sin_LP: Tensor, eps: float, num_heads: int
) -> Tensor:
    n_BLND = rms_norm(x_BLD, weight, eps).unflatten(-1, (num_heads, -1))
    return apply_rope(n_BLND, cos_LP, sin_LP)
