"""Triton form of the norms: launches of the kernels beside this file, and their gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from turbodiffusion.ops.gpu import obstacle  # noqa: F401 - part of the form
from turbodiffusion.ops.linear import BLOCK, Quantized
from turbodiffusion.ops.norm import portable
from turbodiffusion.ops.norm.config import RowConfig
from turbodiffusion.ops.norm.kernels import norm_bwd_kernel, norm_fwd_kernel

PROGRAMS = 1024
"""About how many programs a backward pass has, over all samples: several a multiprocessor, so that
some wait for memory while others compute, yet few beside the rows, since each writes its sums."""


class Form(NamedTuple):
    """What tells the norms apart."""

    centred: bool
    plus_one: bool = False
    round_first: bool = False


RMS, LAYER = Form(centred=False), Form(centred=True)
MODULATED = Form(centred=True, plus_one=True, round_first=True)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _Norm.apply(x, weight, None, eps, RMS)


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, released_numerics: bool
) -> Tensor:
    if released_numerics:  # a comparison aid: no kernel computes this variance
        return portable.layer_norm(x, weight, bias, eps, True)
    return _Norm.apply(x, weight, bias, eps, LAYER)


def layer_norm_modulate(x_BLD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor, eps: float) -> Tensor:
    return _Norm.apply(x_BLD, scale_B1D, shift_B1D, eps, MODULATED)


def layer_norm_quantize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Quantized:
    return quantized(x, weight, bias, eps, LAYER)


def layer_norm_modulate_quantize(
    x_BLD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor, eps: float
) -> Quantized:
    return quantized(x_BLD, scale_B1D, shift_B1D, eps, MODULATED._replace(round_first=False))


def evenly_spaced(x: Tensor) -> tuple[Tensor, int]:
    """``x`` with all its rows at one distance, and that distance in elements.

    Slices of a wider matrix pass as they are; only what has no such distance is copied.
    """
    step = span = 0
    for size, stride in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if size == 1:
            continue
        if step and stride != span:
            return x.contiguous(), x.shape[-1]
        step = step or stride
        span = stride * size
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        return x.contiguous(), x.shape[-1]
    return x, step or x.shape[-1]


def _samples(x: Tensor, *vectors: Tensor | None) -> tuple[int, int]:
    """(B, rows of each): 1 where every row sees the same vectors, as those of a layer are."""
    rows = x.numel() // max(1, x.shape[-1])
    own = any(v is not None and v.ndim > 1 and v.shape[0] > 1 for v in vectors)
    return (x.shape[0], rows // x.shape[0]) if own else (1, rows)


def _vector(v: Tensor | None) -> tuple[Tensor | None, int]:
    """A vector (D,), or one a sample (B, 1, D), and the distance from sample to sample."""
    if v is None:
        return None, 0
    v = v if v.stride(-1) == 1 else v.contiguous()
    return v, v.stride(0) if v.ndim > 1 and v.shape[0] > 1 else 0


def launch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, form: Form,
    out: Tensor, scale: Tensor | None, config: RowConfig | None = None,
) -> None:  # fmt: skip
    batch, length = _samples(x, weight, bias)
    if not batch * length:
        return
    width = x.shape[-1]
    x, x_stride = evenly_spaced(x)
    weight, weight_stride = _vector(weight)
    bias, bias_stride = _vector(bias)
    pick = RowConfig.forward if scale is None else RowConfig.quantising
    c = config or pick(width, x.element_size())
    norm_fwd_kernel[(triton.cdiv(length, c.rows), batch)](
        x, weight, bias, out, scale,
        length, x_stride, weight_stride, bias_stride, eps,
        D=width, CHUNK=c.chunk, COUNT=c.count, ROWS=c.rows,
        CENTRED=form.centred, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
        PLUS_ONE=form.plus_one, ROUND_FIRST=form.round_first, QUANTIZE=scale is not None,
        num_warps=c.num_warps,
    )  # fmt: skip


def quantized(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, form: Form,
    config: RowConfig | None = None,
) -> Quantized:  # fmt: skip
    width = x.shape[-1]
    rows = x.numel() // width
    q_MK = torch.empty(rows, width, dtype=torch.int8, device=x.device)
    scale = torch.empty(rows, width // BLOCK, dtype=torch.float32, device=x.device)
    launch(x, weight, bias, eps, form, q_MK, scale, config)
    return Quantized(q_MK, scale)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, form: Form
    ) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        launch(x, weight, bias, eps, form, out, None)
        ctx.save_for_backward(x, weight, bias)
        ctx.eps, ctx.form = eps, form
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        return *backward(x, weight, bias, grads[0], ctx.eps, ctx.form), None, None


def backward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, grad: Tensor, eps: float, form: Form
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias, each in the shape and dtype of its tensor."""
    batch, length = _samples(x, weight, bias)
    width = x.shape[-1]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    c = RowConfig.backward(width, x.element_size())
    programs = min(triton.cdiv(length, c.rows), triton.cdiv(PROGRAMS, max(1, batch)))

    def partial_sums(vector: Tensor | None) -> Tensor | None:
        if vector is None:
            return None
        return torch.empty(batch, programs, width, dtype=torch.float32, device=x.device)

    weight_sums, bias_sums = partial_sums(weight), partial_sums(bias)
    if batch * length:
        rows, x_stride = evenly_spaced(x)
        factor, weight_stride = _vector(weight)
        norm_bwd_kernel[(programs, batch)](
            rows, factor, grad.contiguous(), dx, weight_sums, bias_sums,
            length, x_stride, weight_stride, eps,
            D=width, CHUNK=c.chunk, COUNT=c.count, ROWS=c.rows,
            CENTRED=form.centred, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
            PLUS_ONE=form.plus_one, ROUND_FIRST=form.round_first, num_warps=c.num_warps,
        )  # fmt: skip
    return dx, _total(weight_sums, weight), _total(bias_sums, bias)


def _total(sums: Tensor | None, vector: Tensor | None) -> Tensor | None:
    """Partial sums (B, programs, D) added up in the shape and dtype of ``vector``."""
    if sums is None or vector is None:
        return None
    own = vector.numel() // vector.shape[-1]
    return sums.sum(1).sum_to_size(own, vector.shape[-1]).view(vector.shape).to(vector.dtype)
