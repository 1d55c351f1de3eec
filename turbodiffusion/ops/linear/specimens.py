"""The linear kernels as they are launched for Wan, for :mod:`turbodiffusion.ops.aot`."""

from __future__ import annotations

from dataclasses import replace

from turbodiffusion.ops import aot
from turbodiffusion.ops.linear import gemm_kernels
from turbodiffusion.ops.linear.config import (
    Fp8Config,
    GemmConfig,
    QuantizeConfig,
    candidates,
    specialised,
)
from turbodiffusion.ops.linear.fp8_kernels import fp8_gemm_kernel
from turbodiffusion.ops.linear.quantize_kernels import quantize_fp8_kernel, quantize_kernel

ROWS = 32760
EPILOGUES = {
    "store": gemm_kernels.STORE,
    "gelu_quantize": gemm_kernels.GELU_QUANTIZE,
    "residual": gemm_kernels.RESIDUAL,
}


def specimens(capability: int) -> list[aot.Specimen]:
    pair = divmod(capability, 10)
    best = GemmConfig.plain(pair)
    found = [_gemm(f"int8_gemm {name}", best, capability, name) for name in EPILOGUES]
    found.append(_gemm("int8_gemm tile", best, capability, "store", sx_rows=128))
    for config in candidates(pair, ROWS):
        cut = replace(config, group_m=best.group_m)  # which changes no instruction
        if cut != best and not config.specialised:
            found.append(_gemm(f"int8_gemm {label(config)}", config, capability, "gelu_quantize"))
    if capability == 90:
        found += [_specialised(name) for name in EPILOGUES]
    found += [_quantize(tile) for tile in (False, True)]
    if capability >= 89:
        found += [_quantize_fp8(), _fp8_gemm(Fp8Config.of(pair, ROWS), capability)]
    return found


def label(c: GemmConfig) -> str:
    """Tile, parts along M and N, warps and stages."""
    if c.specialised:
        return f"specialised s{c.num_stages}"
    return f"{c.block_m}×{c.block_n}/{c.split_m}·{c.split_n} w{c.num_warps} s{c.num_stages}"


def _gemm(
    name: str, c: GemmConfig, capability: int, epilogue: str, sx_rows: int = 1
) -> aot.Specimen:
    signature, constants = _arguments(epilogue, sx_rows)
    return aot.Specimen(
        name, gemm_kernels.int8_gemm_kernel,
        {
            "x": _operand("i8", c.block_m // c.split_m, c.descriptors),
            "w": _operand("i8", c.block_n // c.split_n, c.descriptors),
            **signature,
        },
        {
            **constants, "BM": c.block_m, "BN": c.block_n, "SPLIT_M": c.split_m,
            "SPLIT_N": c.split_n, "GROUP_M": c.group_m, "DESCRIPTORS": c.descriptors,
            "ORDERED": c.ordered, "HALF": c.half,
        },
        c.num_warps, c.num_stages, expects=(aot.INT8_PRODUCT[capability],), aligned=("N", "K"),
    )  # fmt: skip


def _specialised(epilogue: str) -> aot.Specimen:
    from turbodiffusion.ops.linear.hopper_kernels import TILES, specialised_gemm_kernel

    signature, constants = _arguments(epilogue, 1)
    c = specialised()
    return aot.Specimen(
        f"specialised_gemm {epilogue}", specialised_gemm_kernel,
        {
            "x": f"tensordesc<i8[{c.block_m}, 128],{TILES!r}>",
            "w": f"tensordesc<i8[{c.block_n}, 128],{TILES!r}>",
            **signature,
        },
        {**constants, "GROUP_M": c.group_m, "STAGES": c.num_stages},
        c.num_warps, expects=(aot.INT8_PRODUCT[90],), aligned=("N", "K"),
    )  # fmt: skip


def _arguments(epilogue: str, sx_rows: int) -> tuple[dict[str, str], dict[str, object]]:
    """What both int8 kernels take: types of the tensors that are there, None for the others."""
    signature = {
        "p_sx": "*fp32", "p_sw": "*fp32", "p_bias": "*bf16", "p_out": "*bf16",
        "M": "i32", "N": "i32", "K": "i32", "L": "i32",
    }  # fmt: skip
    if epilogue == "gelu_quantize":
        signature |= {"p_out": "*i8", "p_so": "*fp32"}
    elif epilogue == "residual":
        signature |= {"p_residual": "*bf16", "p_gate": "*fp32"}
    absent = {"p_residual", "p_gate", "p_so"} - signature.keys()
    return signature, {
        **dict.fromkeys(absent), "ONE_SAMPLE": True, "SX_ROWS": sx_rows,
        "EPILOGUE": EPILOGUES[epilogue], "RELEASED": sx_rows > 1,
    }  # fmt: skip


def _fp8_gemm(c: Fp8Config, capability: int) -> aot.Specimen:
    return aot.Specimen(
        "fp8_gemm", fp8_gemm_kernel,
        {
            "x": _operand("fp8e4nv", c.block_m, c.descriptors),
            "w": _operand("fp8e4nv", c.block_n, c.descriptors),
            "p_sx": "*fp32", "p_sw": "*fp32", "p_bias": "*bf16", "p_out": "*bf16",
            "M": "i32", "N": "i32", "K": "i32",
        },
        {
            "BM": c.block_m, "BN": c.block_n, "BK": 128, "GROUP_M": c.group_m,
            "DESCRIPTORS": c.descriptors,
        },
        c.num_warps, c.num_stages, expects=(aot.FP8_PRODUCT[capability],), aligned=("N", "K"),
    )  # fmt: skip


def _quantize(tile: bool) -> aot.Specimen:
    config = QuantizeConfig()
    return aot.Specimen(
        "quantize_tile" if tile else "quantize_group", quantize_kernel,
        {"p_x": "*bf16", "p_q": "*i8", "p_scale": "*fp32", "M": "i32", "K": "i32"},
        {
            "ROWS": 128 if tile else config.rows, "TILE": tile,
            "FACTOR": 128.0 if tile else 127.0,
        },
        2 * config.num_warps if tile else config.num_warps, aligned=("K",),
    )  # fmt: skip


def _quantize_fp8() -> aot.Specimen:
    config = QuantizeConfig()
    return aot.Specimen(
        "quantize_fp8", quantize_fp8_kernel,
        {"p_x": "*bf16", "p_q": "*fp8e4nv", "p_scale": "*fp32", "K": "i32"},
        {"BLOCK": config.row_block}, config.num_warps, aligned=("K",),
    )  # fmt: skip


def _operand(kind: str, rows: int, descriptors: bool) -> str:
    return f"tensordesc<{kind}[{rows}, 128]>" if descriptors else f"*{kind}"
