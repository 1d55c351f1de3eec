"""Linear layers: plain, and with 8-bit weights and activations (W8A8).

A quantised matrix is int8 with one float32 scale per 128×128 block, ``w ≈ q · scale[block]``.
Activations are quantised on the way in, with either of two granularities:

``tile``   128×128 blocks with factor 128, bit-comparable with the released kernels: the largest
           positive element saturates at 127, and the bias is added after a rounding.
``group``  1×128 groups with factor 127: a row with small values keeps its own scale, so rows of
           unequal size (relative error 1.1 % instead of 4.5 %) and outliers are served better.
"""

from __future__ import annotations

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
    activation: Activation = "tile",
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
    n, k = int8_weight.shape
    blocks = -(-n // BLOCK), k // BLOCK
    if k % BLOCK or x.shape[-1] != k or tuple(scale.shape) != blocks:
        raise UsageError(
            "ops-int8-shape",
            f"int8_linear got x (…, {x.shape[-1]}), weight {(n, k)}, scale {tuple(scale.shape)}; "
            f"the width must be equal and a multiple of {BLOCK}, the scale {blocks}.",
            "Use an unquantised linear for other widths.",
        )
    if activation not in ("tile", "group"):
        raise UsageError(
            "ops-int8-activation",
            f"Activations can be quantised by 'tile' or 'group', not {activation!r}.",
            "Use 'tile' for the released numerics, 'group' for the smaller error.",
        )
    form = backend.form("linear", x.device)
    return form.int8_linear(x, int8_weight, scale, bias, activation)


def quantize_tile(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a matrix by 128×128 blocks with factor 128 (weights; activations of ``tile``).

    Per block ``amax = max(1e-8, max|x|)``, ``q = sat(round_half_even(x · (128/amax)))`` in
    [-128, 127], ``scale = amax/128``. Blocks at the border count missing elements as zero.

    Returns:
        int8 (M, K) and float32 (⌈M/128⌉, ⌈K/128⌉).
    """
    return backend.form("linear", x_MK.device).quantize_tile(x_MK)


def quantize_group(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row by groups of 128 with factor 127 (activations of ``group``).

    Returns:
        int8 (M, K) in [-127, 127] and float32 (M, ⌈K/128⌉).
    """
    return backend.form("linear", x_MK.device).quantize_group(x_MK)


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
