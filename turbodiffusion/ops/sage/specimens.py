"""The kernels of 8-bit attention as they are launched on a GPU, for compilation without one."""

from __future__ import annotations

import torch

from turbodiffusion.ops.aot import FP8_PRODUCT, HALF_PRODUCT, INT8_PRODUCT, Specimen
from turbodiffusion.ops.sage.config import (
    CoreConfig,
    PrepareConfig,
    default_product,
    integer_dtype,
)
from turbodiffusion.ops.sage.core import core_kernel
from turbodiffusion.ops.sage.prepare import quantise_kernel, query_kernel

GEOMETRIES = ((128, 64, 128), (64, 128, 128), (128, 64, 64))
"""(query block, key block, head width): the released ones and a narrower head."""


INTEGERS = {torch.int8: "*i8", torch.bfloat16: "*bf16"}
VALUES = {"bf16": "*bf16", "fp16": "*fp16", "fp8": "*fp8e4nv"}


def specimens(capability: int) -> list[Specimen]:
    """Attention in each format of the second product, and what prepares for it."""
    found = divmod(capability, 10)
    products = ("bf16", "fp16", "fp8") if default_product(found) == "fp8" else ("bf16", "fp16")
    listed = [
        core(capability, *geometry, pv, sparse=True) for geometry in GEOMETRIES for pv in products
    ]
    listed += [core(capability, 128, 64, 128, pv, sparse=False) for pv in products]
    for work in ("keep", "half", "fp8") if "fp8" in products else ("keep", "half"):
        listed += [quantise(capability, 64, 128, work, feature) for feature in ("none", "softmax")]
        listed += [quantise(capability, 128, 128, work, "none")]
    for feature in ("softmax", "elu", "relu", "none"):
        listed += [query(capability, 128, 128, feature)]
    listed += [query(capability, 64, 128, "softmax"), query(capability, 128, 64, "softmax")]
    return listed


def core(
    capability: int, block_q: int, block_k: int, width: int, pv: str, *, sparse: bool,
    config: CoreConfig | None = None,
) -> Specimen:  # fmt: skip
    """The attention kernel on bf16 inputs: over a block list, or dense with its LSE."""
    found = divmod(capability, 10)
    config = config or CoreConfig.pick(found, block_q, block_k, width, pv)
    integers = INTEGERS[integer_dtype(found)]
    strides = {f"stride_{name}": "i32" for name in ("vb", "vl", "vn", "ob", "ol", "on")}
    signature = {
        "p_q": integers, "p_k": integers, "p_v": VALUES[pv], "p_q_scale": "*fp32",
        "p_k_scale": "*fp32", "p_v_scale": "*fp32", "p_blocks": "*i64", "p_counts": "*i32",
        "p_shift": "*fp32", "p_out": "*bf16", "p_lse": "*fp32", **strides, "L": "i32", "S": "i32",
        "N": "i32", "K": "i32", "KEPT": "i32", "scale": "fp32",
    }  # fmt: skip
    none = {"p_counts"} | ({"p_shift", "p_lse"} if sparse else {"p_blocks"})
    none |= set() if pv == "fp8" else {"p_v_scale"}
    constants = {
        **dict.fromkeys(none), "D": width,
        "BQ": block_q, "BK": block_k, "PV": pv, "PARTS": config.parts,
        "TWO_LEVEL": config.two_level, "LISTED": sparse, "COUNTED": False, "LSE": not sparse,
        "ADD": sparse,
    }  # fmt: skip
    second = FP8_PRODUCT if pv == "fp8" else HALF_PRODUCT
    return Specimen(
        f"core {block_q}x{block_k}x{width} {pv}{'' if sparse else ' dense'}",
        core_kernel,
        {name: kind for name, kind in signature.items() if name not in constants},
        constants,
        config.num_warps,
        config.num_stages,
        (INT8_PRODUCT[capability], second[capability]),
        tuple(strides),
        config.options(),
    )


def query(capability: int, block_q: int, width: int, feature: str) -> Specimen:
    """The pass over queries, bf16."""
    strides = {f"stride_{name}": "i32" for name in ("qb", "ql", "qn", "ob", "ol", "on")}
    signature = {
        "p_q": "*bf16", "p_mean": "*bf16", "p_state": "*bf16", "p_weight": "*fp32",
        "p_bias": "*fp32", "p_q8": INTEGERS[integer_dtype(divmod(capability, 10))],
        "p_q_scale": "*fp32", "p_q_mean": "*bf16", "p_shift": "*fp32", "p_out": "*bf16", **strides,
        "L": "i32", "N": "i32", "Q": "i32", "PER": "i32", "scale": "fp32",
    }  # fmt: skip
    dense = feature == "none"
    config = PrepareConfig.queries(divmod(capability, 10), block_q, not dense)
    # 32 rows are too few for Hopper's larger matrix instruction.
    product = HALF_PRODUCT[capability if config.rows >= 64 else 80]
    none = (
        {"p_state", "p_weight", "p_bias", "p_q_mean", "p_out"} if dense else {"p_mean", "p_shift"}
    )
    constants = {
        **dict.fromkeys(none), "D": width, "BQ": block_q, "FEATURE": feature, "POOL": not dense,
        "SHIFT": dense, "ROWS": min(config.rows, block_q),
    }  # fmt: skip
    return Specimen(
        f"query {block_q}x{width} {feature}",
        query_kernel,
        {name: kind for name, kind in signature.items() if name not in constants},
        constants,
        config.num_warps,
        config.num_stages,
        () if dense else (product,),
        tuple(strides),
    )


def quantise(capability: int, block_k: int, width: int, work: str, feature: str) -> Specimen:
    """The pass over keys and values, bf16."""
    strides = {f"stride_{name}": "i32" for name in ("kb", "kl", "kn", "vb", "vl", "vn")}
    signature = {
        "p_k": "*bf16", "p_v": "*bf16", "p_mean": "*bf16", "p_v_scale": "*fp32",
        "p_k8": INTEGERS[integer_dtype(divmod(capability, 10))],
        "p_k_scale": "*fp32",
        "p_vq": "*fp8e4nv" if work == "fp8" else "*fp16", "p_state": "*fp32",
        "p_weight": "*fp32", **strides, "S": "i32", "N": "i32", "K": "i32", "PER": "i32",
    }  # fmt: skip
    none = {"p_state", "p_weight"} if feature == "none" else set()
    none |= set() if work == "fp8" else {"p_v_scale"}
    constants = {
        **dict.fromkeys(none), "D": width, "BK": block_k, "PV": work, "FEATURE": feature,
    }  # fmt: skip
    config = PrepareConfig.keys(divmod(capability, 10), block_k, feature != "none")
    return Specimen(
        f"quantise {block_k}x{width} {work} {feature}",
        quantise_kernel,
        {name: kind for name, kind in signature.items() if name not in constants},
        constants,
        config.num_warps,
        config.num_stages,
        () if feature == "none" else (HALF_PRODUCT[capability],),
        tuple(strides),
    )
