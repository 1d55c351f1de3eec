"""The rotation in real arithmetic, which every device and the compiler fuse well."""

from __future__ import annotations

import torch
from torch import Tensor

from turbodiffusion.ops.norm.portable import rms_norm


def apply_rope(x_BLND: Tensor, cos_LP: Tensor, sin_LP: Tensor) -> Tensor:
    even, odd = x_BLND.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_LP[:, None], sin_LP[:, None]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x_BLND.dtype)


def rms_norm_rope(
    x_BLD: Tensor, weight: Tensor, cos_LP: Tensor, sin_LP: Tensor, eps: float, num_heads: int
) -> Tensor:
    n_BLND = rms_norm(x_BLD, weight, eps).unflatten(-1, (num_heads, -1))
    return apply_rope(n_BLND, cos_LP, sin_LP)
