"""The SLA kernels as they are launched for the released networks and the embedded ones."""

from __future__ import annotations

from dataclasses import replace

from turbodiffusion.ops.aot import HALF_PRODUCT, Specimen
from turbodiffusion.ops.attention import specimens as attention
from turbodiffusion.ops.attention.specimens import itemsize, precision, product, tensor_strides
from turbodiffusion.ops.sla.config import SelectConfig, TokenConfig
from turbodiffusion.ops.sla.linear_kernels import (
    linear_key_kernel,
    linear_query_kernel,
    token_product_kernel,
)
from turbodiffusion.ops.sla.map_kernels import pool_kernel, select_kernel, transpose_kernel

INFERENCE, TRAINING = (128, 64), (64, 64)
"""Queries and keys of a block."""
KEY_BLOCKS = (512, 1182)
"""Of a clip of 480 and of 720 lines, in blocks of 64."""


def specimens(capability: int) -> list[Specimen]:
    found = [transposition(), *map(selection, KEY_BLOCKS)]
    for width, dtype in attention.SHAPES:
        name = "sparse"
        forward = attention.forward(capability, width, dtype, name, INFERENCE, "softmax")
        found.append(replace(forward, name=f"sla forward {dtype} D={width}"))
        found.extend(attention.backward(capability, width, dtype, name, TRAINING))
        found.append(pool(64, width, dtype))
        found.append(token_product(capability, width, dtype, "softmax", False))
        found.extend(linear_backward(capability, width, dtype))
    counted = attention.forward(capability, 128, "bf16", "counted", INFERENCE, None, counted=True)
    largest = pool(128, 128, "bf16", "amax")
    return [*found, counted, largest, token_product(capability, 128, "bf16", "softmax", True)]


def pool(block: int, width: int, dtype: str, kind: str = "sum") -> Specimen:
    config = TokenConfig.pool(block)
    return Specimen(
        f"pool {kind} {dtype} D={width}",
        pool_kernel,
        {"x": f"*{dtype}", "pooled": "*fp32", "L": "i32", "N": "i32", **tensor_strides("x")},
        {"D": width, "BLOCK": block, "TILE": config.tile, "KIND": kind},
        config.num_warps, config.num_stages, aligned=tuple(tensor_strides("x")),
    )  # fmt: skip


def selection(key_blocks: int) -> Specimen:
    config = SelectConfig.row(key_blocks)
    return Specimen(
        f"select of {key_blocks}",
        select_kernel,
        {"scores": "*fp32", "blocks": "*i64", "width": "i32", "kept": "i32"},
        {"WIDTH": config.width},
        config.num_warps,
    )


def transposition() -> Specimen:
    return Specimen(
        "transpose",
        transpose_kernel,
        {
            "chosen_map": "*i8", "offsets": "*i32", "chosen": "*i32",
            "query_blocks": "i32", "key_blocks": "i32", "map_row": "i32",
        },
        {"TILE_Q": 64, "TILE_K": 32},
    )  # fmt: skip


def token_product(
    capability: int, width: int, dtype: str, feature: str, weighted: bool
) -> Specimen:
    config = TokenConfig.token_product(width, itemsize(dtype))
    return Specimen(
        f"token product {dtype} D={width}{' weighted' * weighted}",
        token_product_kernel,
        {
            "x": f"*{dtype}", "y": f"*{dtype}",
            **dict.fromkeys(("weight", "products", "sums"), "*fp32"),
            **dict.fromkeys(("L", "N", "chunk"), "i32"), **tensor_strides("x", "y"),
        },
        {
            "D": width, "TILE": config.tile, "FEATURE": feature, "WEIGHTED": weighted,
            "PRECISION": precision(dtype),
        },
        config.num_warps, config.num_stages, product(capability, dtype),
        aligned=tuple(tensor_strides("x", "y")),
    )  # fmt: skip


def linear_backward(capability: int, width: int, dtype: str) -> list[Specimen]:
    config = TokenConfig.linear_backward(divmod(capability, 10), width, itemsize(dtype))
    constants = {
        "D": width, "TILE": config.tile, "FEATURE": "softmax", "PRECISION": precision(dtype),
    }  # fmt: skip
    # A tile of 32 tokens is too low for the larger matrix instructions of 9.0 and 10.0.
    expects = () if dtype == "fp32" else (HALF_PRODUCT[80],)
    query = Specimen(
        f"linear backward q {dtype} D={width}",
        linear_query_kernel,
        {
            **dict.fromkeys(("q", "o", "g", "dq", "dn", "o_lin", "state", "proj"), f"*{dtype}"),
            **dict.fromkeys(("dz", "delta", "key_sum", "unit", "bias"), "*fp32"),
            "L": "i32", "N": "i32", **tensor_strides("q", "o", "g"),
        },
        constants,
        config.num_warps, config.num_stages, expects,
        aligned=tuple(tensor_strides("q", "o", "g")),
    )  # fmt: skip
    key = Specimen(
        f"linear backward k {dtype} D={width}",
        linear_key_kernel,
        {
            **dict.fromkeys(("k", "v", "dk", "dv", "dstate"), f"*{dtype}"), "dsum": "*fp32",
            "L": "i32", "N": "i32", **tensor_strides("k", "v"),
        },
        constants,
        config.num_warps, config.num_stages, expects, aligned=tuple(tensor_strides("k", "v")),
    )  # fmt: skip
    return [query, key]
