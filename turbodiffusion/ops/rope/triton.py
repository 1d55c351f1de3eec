"""Triton form of the rotation: launches of the kernel beside this file, and their gradients.

Heads whose width is no power of two go to the portable form; no released network has them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from turbodiffusion.ops.gpu import obstacle  # noqa: F401 - part of the form
from turbodiffusion.ops.norm.config import RowConfig
from turbodiffusion.ops.norm.triton import RMS, backward, evenly_spaced
from turbodiffusion.ops.rope import portable
from turbodiffusion.ops.rope.kernels import rope_kernel


def apply_rope(x_BLND: Tensor, cos_LP: Tensor, sin_LP: Tensor) -> Tensor:
    if not _power_of_two(x_BLND.shape[3]):
        return portable.apply_rope(x_BLND, cos_LP, sin_LP)
    return _Rope.apply(x_BLND, cos_LP, sin_LP)


def rms_norm_rope(
    x_BLD: Tensor, weight: Tensor, cos_LP: Tensor, sin_LP: Tensor, eps: float, num_heads: int
) -> Tensor:
    if not _power_of_two(x_BLD.shape[2] // num_heads):
        return portable.rms_norm_rope(x_BLD, weight, cos_LP, sin_LP, eps, num_heads)
    return _NormRope.apply(x_BLD, weight, cos_LP, sin_LP, eps, num_heads)


def launch(
    x_BLD: Tensor, weight: Tensor | None, cos_LP: Tensor, sin_LP: Tensor, eps: float,
    num_heads: int, *, inverse: bool = False, config: RowConfig | None = None,
) -> Tensor:  # fmt: skip
    """Normalise (with a weight) and rotate, or turn back: (B, L, N, head width)."""
    batch, length, width = x_BLD.shape
    x_BLD, x_stride = evenly_spaced(x_BLD)
    head = width // num_heads
    out = torch.empty(batch, length, num_heads, head, dtype=x_BLD.dtype, device=x_BLD.device)
    if not batch * length:
        return out
    c = config or RowConfig.forward(width, x_BLD.element_size())
    rope_kernel[(triton.cdiv(length, c.rows), batch)](
        x_BLD, weight, cos_LP.contiguous(), sin_LP.contiguous(), out, length, x_stride, eps,
        D=width, HEAD=head, CHUNK=c.chunk, COUNT=c.count, ROWS=c.rows,
        NORM=weight is not None, INVERSE=inverse, num_warps=c.num_warps,
    )  # fmt: skip
    return out


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLND: Tensor, cos_LP: Tensor, sin_LP: Tensor) -> Tensor:
        ctx.save_for_backward(cos_LP, sin_LP)
        return launch(x_BLND.flatten(2), None, cos_LP, sin_LP, 0.0, x_BLND.shape[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos_LP, sin_LP = ctx.saved_tensors
        grad_BLD, heads = grads[0].flatten(2), grads[0].shape[2]
        return launch(grad_BLD, None, cos_LP, sin_LP, 0.0, heads, inverse=True), None, None


class _NormRope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BLD: Tensor, weight: Tensor, cos_LP: Tensor, sin_LP: Tensor, eps: float,
        num_heads: int,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x_BLD, weight, cos_LP, sin_LP)
        ctx.eps = eps
        return launch(x_BLD, weight, cos_LP, sin_LP, eps, num_heads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BLD, weight, cos_LP, sin_LP = ctx.saved_tensors
        grad_BLND = grads[0]
        heads = grad_BLND.shape[2]
        grad_BLND = launch(grad_BLND.flatten(2), None, cos_LP, sin_LP, 0.0, heads, inverse=True)
        dx, dweight, _ = backward(x_BLD, weight, None, grad_BLND.flatten(2), ctx.eps, RMS)
        return dx, dweight, None, None, None, None


def _power_of_two(width: int) -> bool:
    return width > 1 and width & (width - 1) == 0
