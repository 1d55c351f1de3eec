"""Triton form of the linears: launches of the kernels beside this file."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from turbodiffusion.ops import gpu
from turbodiffusion.ops.gpu import obstacle  # noqa: F401
from turbodiffusion.ops.linear import gemm_kernels, portable
from turbodiffusion.ops.linear.config import Fp8Config, GemmConfig, QuantizeConfig
from turbodiffusion.ops.linear.fp8_kernels import fp8_gemm_kernel
from turbodiffusion.ops.linear.gemm_kernels import int8_gemm_kernel
from turbodiffusion.ops.linear.naive import BLOCK, FP8
from turbodiffusion.ops.linear.quantize_kernels import quantize_fp8_kernel, quantize_kernel


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The vendor's product: there is nothing to gain over it."""
    return F.linear(x, weight, bias)


def quantize_tile(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    return _quantize(x_MK, tile=True)


def quantize_group(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    return _quantize(x_MK, tile=False)


def int8_matmul(
    q_MK: Tensor,
    scale_x: Tensor,
    weight_NK: Tensor,
    scale_w: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    released: bool,
    config: GemmConfig | None = None,
) -> Tensor:
    out_MN = q_MK.new_empty(q_MK.shape[0], weight_NK.shape[0], dtype=dtype)
    options = {"EPILOGUE": gemm_kernels.STORE, "RELEASED": released}
    _int8_gemm(q_MK, scale_x, weight_NK, scale_w, out_MN, config, options, p_bias=bias)
    return out_MN


def int8_linear_gelu(
    q_MK: Tensor,
    scale_x: Tensor,
    weight_NK: Tensor,
    scale_w: Tensor,
    bias: Tensor | None,
    config: GemmConfig | None = None,
) -> tuple[Tensor, Tensor]:
    m, n = q_MK.shape[0], weight_NK.shape[0]
    out_MN = q_MK.new_empty(m, n)
    scale = scale_x.new_empty(m, n // BLOCK)
    options = {"EPILOGUE": gemm_kernels.GELU_QUANTIZE, "RELEASED": False}
    _int8_gemm(q_MK, scale_x, weight_NK, scale_w, out_MN, config, options, p_bias=bias, p_so=scale)
    return out_MN, scale


def int8_linear_residual(
    q_MK: Tensor,
    scale_x: Tensor,
    weight_NK: Tensor,
    scale_w: Tensor,
    bias: Tensor | None,
    residual_BLN: Tensor,
    gate_B1N: Tensor | None,
    config: GemmConfig | None = None,
) -> Tensor:
    residual_BLN = residual_BLN.contiguous()
    out_BLN = torch.empty_like(residual_BLN)
    options = {"EPILOGUE": gemm_kernels.RESIDUAL, "RELEASED": False}
    _int8_gemm(
        q_MK, scale_x, weight_NK, scale_w, out_BLN, config, options, rows=residual_BLN.shape[1],
        p_bias=bias, p_residual=residual_BLN,
        p_gate=None if gate_B1N is None else gate_B1N.contiguous(),
    )  # fmt: skip
    return out_BLN


def quantize_fp8(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    if not gpu.has_fp8(x_MK.device):  # nor the conversion
        return portable.quantize_fp8(x_MK)
    x_MK, config = x_MK.contiguous(), QuantizeConfig()
    m, k = x_MK.shape
    q_MK = x_MK.new_empty(m, k, dtype=FP8)
    scale_M = x_MK.new_empty(m, dtype=torch.float32)
    if m:
        block = min(config.row_block, triton.next_power_of_2(k))
        quantize_fp8_kernel[(m,)](x_MK, q_MK, scale_M, k, block, num_warps=config.num_warps)
    return q_MK, scale_M


def fp8_linear(
    x_MK: Tensor,
    weight_NK: Tensor,
    scale_N: Tensor,
    bias: Tensor | None,
    config: Fp8Config | None = None,
) -> Tensor:
    if not gpu.has_fp8(x_MK.device) or x_MK.shape[1] % BLOCK:
        return portable.fp8_linear(x_MK, weight_NK, scale_N, bias)
    config = config or Fp8Config.of(gpu.capability(x_MK.device), x_MK.shape[0])
    return fp8_matmul(*quantize_fp8(x_MK), weight_NK, scale_N, bias, x_MK.dtype, config)


def fp8_matmul(
    q_MK: Tensor,
    scale_M: Tensor,
    weight_NK: Tensor,
    scale_N: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    config: Fp8Config,
) -> Tensor:
    """The product alone, for K a multiple of 128."""
    (m, k), n, c = q_MK.shape, weight_NK.shape[0], config
    out_MN = q_MK.new_empty(m, n, dtype=dtype)
    if m:
        fp8_gemm_kernel[(triton.cdiv(m, c.block_m) * triton.cdiv(n, c.block_n),)](
            _operand(q_MK, c.block_m, c.descriptors),
            _operand(weight_NK.contiguous(), c.block_n, c.descriptors),
            scale_M, scale_N.contiguous(), bias, out_MN, m, n, k,
            BM=c.block_m, BN=c.block_n, BK=BLOCK, GROUP_M=c.group_m, DESCRIPTORS=c.descriptors,
            num_warps=c.num_warps, num_stages=c.num_stages,
        )  # fmt: skip
    return out_MN


def _quantize(x_MK: Tensor, tile: bool) -> tuple[Tensor, Tensor]:
    x_MK, config = x_MK.contiguous(), QuantizeConfig()
    (m, k), rows = x_MK.shape, BLOCK if tile else config.rows
    columns = triton.cdiv(k, BLOCK)
    q_MK = x_MK.new_empty(m, k, dtype=torch.int8)
    scale = x_MK.new_empty(triton.cdiv(m, BLOCK) if tile else m, columns, dtype=torch.float32)
    if m:
        quantize_kernel[(triton.cdiv(m, rows), columns)](
            x_MK, q_MK, scale, m, k, ROWS=rows, TILE=tile, FACTOR=128.0 if tile else 127.0,
            num_warps=2 * config.num_warps if tile else config.num_warps,
        )  # fmt: skip
    return q_MK, scale


def _int8_gemm(
    q_MK: Tensor,
    scale_x: Tensor,
    weight_NK: Tensor,
    scale_w: Tensor,
    out: Tensor,
    config: GemmConfig | None,
    options: dict[str, Any],
    *,
    rows: int = 1,
    p_bias: Tensor | None = None,
    p_residual: Tensor | None = None,
    p_gate: Tensor | None = None,
    p_so: Tensor | None = None,
) -> None:
    """Launch the product into ``out``; ``rows`` is the length of a sample, for the gate."""
    (m, k), n = q_MK.shape, weight_NK.shape[0]
    if m == 0:
        return
    options |= {"ONE_SAMPLE": rows >= m, "SX_ROWS": 1 if scale_x.shape[0] == m else BLOCK}
    # With several samples or a float32 residual the specialised kernel would spill; activations
    # in tiles are for comparisons.
    simple = (
        (p_gate is None or rows >= m)
        and (p_residual is None or p_residual.dtype is not torch.float32)
        and options["SX_ROWS"] == 1
    )
    c = config or _config(q_MK.device, m, simple)
    q_MK, weight_NK = q_MK.contiguous(), weight_NK.contiguous()
    tiles = triton.cdiv(m, c.block_m) * triton.cdiv(n, c.block_n)
    arguments = (
        scale_x.contiguous(), scale_w.contiguous(), p_bias, p_residual, p_gate, out, p_so,
        m, n, k, rows,
    )  # fmt: skip
    if c.specialised:
        _specialised_gemm(q_MK, weight_NK, tiles, arguments, options, c)
        return
    int8_gemm_kernel[(tiles,)](
        _operand(q_MK, c.block_m // c.split_m, c.descriptors),
        _operand(weight_NK, c.block_n // c.split_n, c.descriptors),
        *arguments, **options,
        BM=c.block_m, BN=c.block_n, SPLIT_M=c.split_m, SPLIT_N=c.split_n, GROUP_M=c.group_m,
        DESCRIPTORS=c.descriptors, ORDERED=c.ordered, HALF=c.half,
        num_warps=c.num_warps, num_stages=c.num_stages,
    )  # fmt: skip


def _specialised_gemm(
    q_MK: Tensor, weight_NK: Tensor, tiles: int, arguments: tuple[Any, ...],
    options: dict[str, Any], c: GemmConfig,
) -> None:  # fmt: skip
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as Tiles

    from turbodiffusion.ops.linear.hopper_kernels import TILES, specialised_gemm_kernel

    programs = min(tiles, gpu.multiprocessors(q_MK.get_device()))
    specialised_gemm_kernel[(programs,)](
        Tiles.from_tensor(q_MK, [c.block_m, BLOCK], TILES),
        Tiles.from_tensor(weight_NK, [c.block_n, BLOCK], TILES),
        *arguments, **options, GROUP_M=c.group_m, STAGES=c.num_stages, num_warps=c.num_warps,
    )  # fmt: skip


def _config(device: torch.device, m: int, simple: bool) -> GemmConfig:
    if device.type == "cpu":
        return GemmConfig.interpreted()
    found = GemmConfig.of(gpu.capability(device), m)
    if found.specialised and not (simple and _has_gluon()):
        return GemmConfig.plain(gpu.capability(device))
    return found


@functools.cache
def _has_gluon() -> bool:
    """Whether this Triton has what ``hopper_kernels.py`` is written in, which is experimental."""
    try:
        importlib.import_module("turbodiffusion.ops.linear.hopper_kernels")
    except (ImportError, AttributeError, TypeError):
        return False
    return True


def _operand(matrix: Tensor, rows: int, descriptors: bool) -> Any:
    if descriptors:
        return TensorDescriptor.from_tensor(matrix, [rows, BLOCK])
    return matrix
