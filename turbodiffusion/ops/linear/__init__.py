"""Linear layers: plain, and with 8-bit weights and activations (W8A8).

A quantised matrix is int8 with one float32 scale per 128×128 block, ``w ≈ q · scale[block]``.
Activations are quantised on the way in, with either of two granularities:

``tile``   128×128 blocks with factor 128, bit-comparable with the released kernels: the largest
           positive element saturates at 127, and the bias is added after a rounding.
``group``  1×128 groups with factor 127: a row with small values keeps its own scale, so rows of
           unequal size (relative error 1.1 % instead of 4.5 %) and outliers are served better.

Grouped activations travel as :class:`Quantized` from the kernel that makes them to the product
that takes them, and what follows a product can be part of it: :func:`int8_linear_gelu` hands on
quantised again, :func:`int8_linear_residual` adds to the residual stream. Between them values are
float32; where separate operators would round to bf16, these do not.

:func:`fp8_linear` is the e4m3 product of GPUs that have one: a scale for each row of the
activations and each row of the weight.
"""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.ops import backend

BLOCK = 128
Activation = Literal["tile", "group"]


class Quantized(NamedTuple):
    """A matrix quantised by 1×128 groups: ``x ≈ q · scale[row, column // 128]``."""

    q: Tensor
    """int8 (M, K) in [-127, 127]."""
    scale: Tensor
    """float32 (M, K/128)."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weightᵀ + bias`` for x (…, K), weight (N, K), bias (N,), all of one float dtype."""
    return backend.form("linear", x.device).linear(x, weight, bias)


def int8_linear(
    x: Tensor,
    int8_weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation = "group",
) -> Tensor:
    """``x weightᵀ + bias`` with both operands in int8, products exact, sums in float32.

    Args:
        x: (…, K), bf16, fp16 or float32; leading axes are flattened before tiles are cut, so a
            tile may span two samples.
        int8_weight: (N, K) int8 with ``scale`` (⌈N/128⌉, K/128) float32.
        bias: (N,) or None.
        activation: granularity of the quantised activations, see the module.

    Returns:
        (…, N) in the dtype of ``x``. Not differentiable.

    Raises:
        UsageError: K is no multiple of 128, or the shapes or the granularity do not fit.
    """
    _check_int8(x.shape[-1], int8_weight, scale)
    if activation not in ("tile", "group"):
        raise UsageError(
            "ops-int8-activation",
            f"Activations can be quantised by 'tile' or 'group', not {activation!r}.",
            "Use 'tile' for the released numerics, 'group' for the smaller error.",
        )
    released = activation == "tile"
    form = backend.form("linear", x.device)
    x_MK = x.reshape(-1, x.shape[-1])
    q_MK, scale_x = form.quantize_tile(x_MK) if released else form.quantize_group(x_MK)
    out_MN = form.int8_matmul(q_MK, scale_x, int8_weight, scale, bias, x.dtype, released)
    return out_MN.view(*x.shape[:-1], int8_weight.shape[0])


def int8_matmul(
    x: Quantized | Tensor,
    int8_weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """``x weightᵀ + bias`` (M, N) of activations that are quantised already, rounded once.

    Args:
        x: int8 (M, K) with a scale for each row and K block (M, K/128), or for each tile
            (⌈M/128⌉, K/128); a float tensor (…, K) is quantised by groups first.
        int8_weight: (N, K) int8 with ``scale`` (⌈N/128⌉, K/128) float32.
        bias: (N,) or None, any float dtype.
        dtype: of the result.

    Raises:
        UsageError: as :func:`int8_linear`.
    """
    q_MK, scale_x = _quantized(x, int8_weight, scale)
    form = backend.form("linear", q_MK.device)
    return form.int8_matmul(q_MK, scale_x, int8_weight, scale, bias, dtype, False)


def int8_linear_gelu(
    x: Quantized | Tensor, int8_weight: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Quantized:
    """``gelu(x weightᵀ + bias)``, tanh form, quantised by groups: the first half of an FFN.

    Arguments as in :func:`int8_matmul`. Nothing is rounded between sum and quantiser.

    Raises:
        UsageError: as :func:`int8_linear`, or N is no multiple of 128.
    """
    if int8_weight.shape[0] % BLOCK:
        raise UsageError(
            "ops-int8-shape",
            f"int8_linear_gelu got a weight {tuple(int8_weight.shape)}; its {int8_weight.shape[0]} "
            f"outputs cannot be quantised by groups of {BLOCK}.",
            "Use int8_linear for other widths.",
        )
    q_MK, scale_x = _quantized(x, int8_weight, scale)
    form = backend.form("linear", q_MK.device)
    return Quantized(*form.int8_linear_gelu(q_MK, scale_x, int8_weight, scale, bias))


def int8_linear_residual(
    x: Quantized | Tensor,
    int8_weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    residual_BLN: Tensor,
    gate_B1N: Tensor | None = None,
) -> Tensor:
    """``residual + (x weightᵀ + bias) · gate``, rounded once to the dtype of the residual.

    Arguments as in :func:`int8_matmul`, with M = B · L; the gate is one vector a sample and is
    used as given, so that a caller who wants the released rounding casts it beforehand.

    Raises:
        UsageError: as :func:`int8_linear`, or residual and gate do not fit.
    """
    q_MK, scale_x = _quantized(x, int8_weight, scale)
    b, length, n = residual_BLN.shape
    fits = b * length == q_MK.shape[0] and n == int8_weight.shape[0]
    if not fits or (gate_B1N is not None and tuple(gate_B1N.shape) != (b, 1, n)):
        raise UsageError(
            "ops-int8-shape",
            f"int8_linear_residual makes {q_MK.shape[0]} × {int8_weight.shape[0]} values and got "
            f"residual {tuple(residual_BLN.shape)}, gate "
            f"{None if gate_B1N is None else tuple(gate_B1N.shape)}.",
            "Give a residual (B, L, N) with B · L rows and a gate (B, 1, N) or None.",
        )
    form = backend.form("linear", q_MK.device)
    return form.int8_linear_residual(
        q_MK, scale_x, int8_weight, scale, bias, residual_BLN, gate_B1N
    )


def fp8_linear(
    x: Tensor, fp8_weight: Tensor, scale_N: Tensor, bias: Tensor | None = None
) -> Tensor:
    """``x weightᵀ + bias`` with both operands in e4m3 and a scale a row of each.

    Args:
        x: (…, K), any float dtype; quantised on the way in by :func:`quantize_fp8`.
        fp8_weight: (N, K) e4m3 with ``scale_N`` (N,) float32.
        bias: (N,) or None.

    Returns:
        (…, N) in the dtype of ``x``. Not differentiable.

    Raises:
        UsageError: the shapes do not fit.
    """
    n, k = fp8_weight.shape
    if x.shape[-1] != k or tuple(scale_N.shape) != (n,):
        raise UsageError(
            "ops-fp8-shape",
            f"fp8_linear got x (…, {x.shape[-1]}), weight {(n, k)}, scale {tuple(scale_N.shape)}; "
            f"the width must be equal and the scale ({n},).",
            "Make both of the weight by quantize_fp8.",
        )
    form = backend.form("linear", x.device)
    out_MN = form.fp8_linear(x.reshape(-1, k), fp8_weight, scale_N, bias)
    return out_MN.view(*x.shape[:-1], n)


@backend.constant_in_graphs
def has_int8(device: torch.device) -> bool:
    """Whether 8-bit products are faster than others there, or their numerics were forced.

    Where False (a CPU, a GPU before capability 8.0), int8 weights serve better as storage only.
    """
    choice = backend.resolve("linear", device)
    return choice.backend != "portable" or bool(os.environ.get(backend.VARIABLE, "").strip())


def quantize_tile(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a matrix by 128×128 blocks with factor 128 (weights; activations of ``tile``).

    Per block ``amax = max(1e-8, max|x|)``, ``q = sat(round_half_even(x · (128/amax)))`` in
    [-128, 127], ``scale = amax/128``. Blocks at the border count missing elements as zero.

    Returns:
        int8 (M, K) and float32 (⌈M/128⌉, ⌈K/128⌉).
    """
    return backend.form("linear", x_MK.device).quantize_tile(x_MK)


def quantize_group(x_MK: Tensor) -> Quantized:
    """Quantise each row by groups of 128 with factor 127 (activations of ``group``).

    Returns:
        int8 (M, K) in [-127, 127] and float32 (M, ⌈K/128⌉).
    """
    return Quantized(*backend.form("linear", x_MK.device).quantize_group(x_MK))


def quantize_fp8(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row to e4m3, its largest value to 448 (weights and activations of fp8).

    Returns:
        e4m3 (M, K) and float32 (M,) with ``x ≈ q · scale``.
    """
    return backend.form("linear", x_MK.device).quantize_fp8(x_MK)


def quantize_weight(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise the weight of a linear for :func:`int8_linear`: :func:`quantize_tile`.

    Released files were quantised from bf16; float32 is accepted and not rounded first.

    Raises:
        UsageError: K is no multiple of 128; such a layer has to stay unquantised.
    """
    if weight_NK.ndim != 2 or weight_NK.shape[1] % BLOCK:
        raise UsageError(
            "ops-int8-shape",
            f"A weight of shape {tuple(weight_NK.shape)} cannot be quantised: it must be (N, K) "
            f"with K a multiple of {BLOCK}.",
            "Leave this layer unquantised.",
        )
    return quantize_tile(weight_NK)


def dequantize_weight(
    int8_weight: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """``int8_weight · scale[row//128, col//128]`` in float32, rounded once to ``dtype``."""
    n, k = int8_weight.shape
    spread_NK = scale.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]
    return (int8_weight.float() * spread_NK).to(dtype)


def _quantized(x: Quantized | Tensor, int8_weight: Tensor, scale: Tensor) -> Quantized:
    """Checked, and quantised if need be."""
    q_MK = x if isinstance(x, Tensor) else x.q
    _check_int8(q_MK.shape[-1], int8_weight, scale)
    return quantize_group(x.reshape(-1, x.shape[-1])) if isinstance(x, Tensor) else x


def _check_int8(width: int, int8_weight: Tensor, scale: Tensor) -> None:
    n, k = int8_weight.shape
    blocks = -(-n // BLOCK), k // BLOCK
    if k % BLOCK or width != k or tuple(scale.shape) != blocks:
        raise UsageError(
            "ops-int8-shape",
            f"int8_linear got x (…, {width}), weight {(n, k)}, scale {tuple(scale.shape)}; "
            f"the width must be equal and a multiple of {BLOCK}, the scale {blocks}.",
            "Use an unquantised linear for other widths.",
        )
