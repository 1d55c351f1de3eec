"""The four functions of the released CUDA extension, over :mod:`turbodiffusion.ops`.

Programs written for the extension import this module instead: same names, same positional
arguments, nothing compiled, any device. PyTorch is imported with the first call.

Tensors are two-dimensional and row-major, on one device. Outputs given as None are created,
others are written in place. Where the released kernels deviate from their definition (the variance
of their layer norm counts padding), the definition is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["gemm_cuda", "layer_norm_cuda", "quant_cuda", "rms_norm_cuda"]


def quant_cuda(
    input: Tensor, output: Tensor | None = None, output_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Quantise (M, K) by 128×128 blocks: int8 (M, K), float32 (⌈M/128⌉, ⌈K/128⌉)."""
    from turbodiffusion.ops.linear import quantize_tile

    q, scale = quantize_tile(input)
    return _into(output, q), _into(output_scale, scale)


def gemm_cuda(A: Tensor, A_scale: Tensor, B: Tensor, B_scale: Tensor, C: Tensor) -> None:
    """``C = A Bᵀ`` of int8 A (M, K) and B (N, K) with a scale for each 128×128 block.

    C is (M, N), fp16 or bf16, and holds the result.
    """
    from turbodiffusion.ops.linear import Quantized, int8_matmul

    C.copy_(int8_matmul(Quantized(A, A_scale), B, B_scale, None, C.dtype))


def rms_norm_cuda(
    input: Tensor, eps: float, weight: Tensor | None = None, output: Tensor | None = None
) -> Tensor:
    """``x · rsqrt(mean(x²) + eps) · weight`` over the rows of float32 (M, n)."""
    from turbodiffusion.ops.norm import rms_norm

    weight = input.new_ones(input.shape[-1]) if weight is None else weight
    return _into(output, rms_norm(input, weight, eps))


def layer_norm_cuda(
    input: Tensor,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    output: Tensor | None = None,
) -> Tensor:
    """``(x - mean) · rsqrt(var + eps) [· weight] [+ bias]`` over the rows of float32 (M, n)."""
    from turbodiffusion.ops.norm import layer_norm

    return _into(output, layer_norm(input, weight, bias, eps))


def _into(output: Tensor | None, result: Tensor) -> Tensor:
    return result if output is None else output.copy_(result)
