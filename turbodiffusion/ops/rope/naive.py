"""Definition of the rotation: a 2×2 matrix times each pair."""

from __future__ import annotations

import torch
from torch import Tensor

from turbodiffusion.ops.norm.naive import rms_norm


def apply_rope(x_BLND: Tensor, cos_LP: Tensor, sin_LP: Tensor) -> Tensor:
    pairs_BLNP2 = x_BLND.float().unflatten(-1, (-1, 2))
    first, second = torch.stack([cos_LP, -sin_LP], -1), torch.stack([sin_LP, cos_LP], -1)
    matrix_LP22 = torch.stack([first, second], -2)
    turned_BLNP2 = torch.einsum("lpij,blnpj->blnpi", matrix_LP22, pairs_BLNP2)
    return turned_BLNP2.flatten(-2).to(x_BLND.dtype)


def rms_norm_rope(
    x_BLD: Tensor, weight: Tensor, cos_LP: Tensor, sin_LP: Tensor, eps: float, num_heads: int
) -> Tensor:
    n_BLND = rms_norm(x_BLD, weight, eps).unflatten(-1, (num_heads, -1))
    return apply_rope(n_BLND, cos_LP, sin_LP)
