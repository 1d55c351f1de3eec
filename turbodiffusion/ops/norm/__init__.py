"""Normalisation over the width of a token.

All arithmetic is float32 whatever the dtypes, with one rounding to the dtype of the input: weights
may come as bf16 or float32 and the result is the same.
"""

from __future__ import annotations

from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.ops import backend
from turbodiffusion.ops.linear import BLOCK, Quantized


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x · rsqrt(mean(x²) + eps) · weight`` over the last axis.

    Args:
        x: (…, D), any float dtype. In Wan, D spans all heads.
        weight: (D,), bf16 or float32.

    Returns:
        (…, D) in the dtype of ``x``.
    """
    return backend.form("norm", x.device).rms_norm(x, weight, eps)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    released_numerics: bool = False,
) -> Tensor:
    """``(x - mean) · rsqrt(var + eps) [· weight + bias]`` over the last axis, biased variance.

    Args:
        x: (…, D), any float dtype; ``weight`` and ``bias`` (D,) or None.
        released_numerics: reproduce a defect of the released kernel, which counts the padding of
            a row to P, the next power of two, in its variance: ``var + (P - D)/D · mean²``. For
            comparison with published outputs only.

    Returns:
        (…, D) in the dtype of ``x``.
    """
    return backend.form("norm", x.device).layer_norm(x, weight, bias, eps, released_numerics)


def layer_norm_modulate(x_BLD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor, eps: float) -> Tensor:
    """``layer_norm(x) · (1 + scale) + shift``, the input of self-attention and of the FFN.

    As in the released path the normalised value is rounded to the dtype of ``x`` first; the
    modulation is float32 and the result is rounded once more.

    Args:
        x_BLD: tokens, any float dtype.
        scale_B1D: one vector a sample, float32; ``shift_B1D`` alike.

    Returns:
        (B, L, D) in the dtype of ``x``.
    """
    return backend.form("norm", x_BLD.device).layer_norm_modulate(x_BLD, scale_B1D, shift_B1D, eps)


def layer_norm_quantize(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6
) -> Quantized:
    """:func:`layer_norm`, quantised by 1×128 groups with factor 127 without a rounding between.

    Args:
        x: (…, K), any float dtype; ``weight`` and ``bias`` (K,) or None.

    Returns:
        What :func:`turbodiffusion.ops.linear.quantize_group` would, for the leading axes of ``x``
        flattened. Not differentiable.

    Raises:
        UsageError: K is no multiple of 128.
    """
    _check_groups(x)
    return backend.form("norm", x.device).layer_norm_quantize(x, weight, bias, eps)


def layer_norm_modulate_quantize(
    x_BLD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor, eps: float
) -> Quantized:
    """:func:`layer_norm_modulate`, quantised as by :func:`layer_norm_quantize`.

    Neither the normalised nor the modulated value is rounded to the dtype of ``x`` on the way.
    """
    _check_groups(x_BLD)
    form = backend.form("norm", x_BLD.device)
    return form.layer_norm_modulate_quantize(x_BLD, scale_B1D, shift_B1D, eps)


def _check_groups(x: Tensor) -> None:
    if x.shape[-1] % BLOCK:
        raise UsageError(
            "ops-int8-shape",
            f"Rows of {x.shape[-1]} elements cannot be quantised by groups of {BLOCK}.",
            f"Use an unquantised linear for widths that are no multiple of {BLOCK}.",
        )
