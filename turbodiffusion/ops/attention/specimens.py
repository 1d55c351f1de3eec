"""The attention kernels as they are launched for the released networks and the embedded ones."""

from __future__ import annotations

from collections.abc import Mapping

from turbodiffusion.ops.aot import HALF_PRODUCT, Specimen
from turbodiffusion.ops.attention.backward import key_kernel, query_kernel
from turbodiffusion.ops.attention.config import AttentionConfig
from turbodiffusion.ops.attention.forward import attend_kernel

SHAPES = ((128, "bf16"), (64, "bf16"), (128, "fp16"))
"""Head widths and dtypes that are compiled."""


def specimens(capability: int) -> list[Specimen]:
    found = []
    for width, dtype in SHAPES:
        found.append(forward(capability, width, dtype, "dense"))
        found.extend(backward(capability, width, dtype, "dense"))
    return found


def forward(
    capability: int, width: int, dtype: str, name: str,
    blocks: tuple[int, int] | None = None, feature: str | None = None, counted: bool = False,
) -> Specimen:  # fmt: skip
    """The forward kernel; ``blocks`` (queries, keys) makes it sparse, ``feature`` adds φ."""
    config = AttentionConfig.forward(divmod(capability, 10), width, itemsize(dtype))
    block_q, block_k = blocks or (config.tile_q, config.tile_k)
    config = config.fit(block_q, block_k, pairs=True)
    return Specimen(
        f"{name} forward {dtype} D={width}",
        attend_kernel,
        {
            **dict.fromkeys(("q", "k", "v", "o"), f"*{dtype}"),
            **dict.fromkeys(("lse", "key_sum", "unit", "bias"), "*fp32"),
            "state": f"*{dtype}", "lists": "*i64" if blocks else f"*{dtype}",
            "counts": "*i32" if counted else "*fp32", **sizes("L", "S", "N", "tiles", "kept"),
            **tensor_strides("q", "k", "v", "o"),
        },
        {
            "D": width, "BLOCK_Q": block_q, "BLOCK_K": block_k,
            "TILE_Q": config.tile_q, "TILE_K": config.tile_k, "SPLIT": -(-block_k // config.tile_k),
            "GROUP": -(-config.tile_k // block_k), "PARTS": config.parts,
            "SPARSE": blocks is not None, "COUNTED": counted,
            "PEEL": config.peel and config.tile_k % block_k == 0,
            "LINEAR": feature is not None, "FEATURE": feature or "none",
            "PRECISION": precision(dtype),
        },
        config.num_warps, config.num_stages, product(capability, dtype),
        aligned=tuple(tensor_strides("q", "k", "v", "o")),
    )  # fmt: skip


def backward(
    capability: int, width: int, dtype: str, name: str, blocks: tuple[int, int] | None = None
) -> list[Specimen]:
    """Both backward kernels; ``blocks`` makes them sparse and adds to another branch's share."""
    pair = divmod(capability, 10)
    config = AttentionConfig.query_backward(pair, width, itemsize(dtype))
    block_q, block_k = blocks or (config.tile_q, config.tile_k)
    config = config.fit(block_q, block_k)
    halves = dict.fromkeys(("q", "k", "v", "g"), f"*{dtype}")
    rows = dict.fromkeys(("lse", "delta"), "*fp32")
    shared = {
        "D": width, "SPARSE": blocks is not None, "ADD": blocks is not None,
        "PRECISION": precision(dtype),
    }  # fmt: skip
    query = Specimen(
        f"{name} backward q {dtype} D={width}",
        query_kernel,
        {
            **halves, **rows, "dq": f"*{dtype}", "counts": "*fp32",
            "lists": "*i64" if blocks else f"*{dtype}", **sizes("L", "S", "N", "tiles", "kept"),
            **tensor_strides("q", "k", "v", "g", "dq"),
        },
        {
            **shared, "BLOCK_Q": block_q, "BLOCK_K": block_k, "TILE_Q": config.tile_q,
            "TILE_K": config.tile_k, "SPLIT": -(-block_k // config.tile_k), "COUNTED": False,
        },
        config.num_warps, config.num_stages, product(capability, dtype),
        aligned=tuple(tensor_strides("q", "k", "v", "g", "dq")),
    )  # fmt: skip
    config = AttentionConfig.key_backward(pair, width, itemsize(dtype))
    block_q, block_k = blocks or (config.tile_q, config.tile_k)
    config = config.fit(block_q, block_k)
    key = Specimen(
        f"{name} backward k {dtype} D={width}",
        key_kernel,
        {
            **halves, **rows, **dict.fromkeys(("dk", "dv"), f"*{dtype}"),
            "offsets": "*i32" if blocks else "*fp32", "chosen": "*i32" if blocks else "*fp32",
            **sizes("L", "S", "N", "tiles", "query_blocks"),
            **tensor_strides("q", "k", "v", "g", "dk", "dv"),
        },
        {
            **shared, "BLOCK_Q": block_q, "BLOCK_K": block_k, "TILE_Q": config.tile_q,
            "TILE_K": config.tile_k, "SPLIT": -(-block_q // config.tile_q),
        },
        config.num_warps, config.num_stages, product(capability, dtype),
        aligned=tuple(tensor_strides("q", "k", "v", "g", "dk", "dv")),
    )  # fmt: skip
    return [query, key]


def product(capability: int, dtype: str) -> tuple[str, ...]:
    """The matrix instruction to expect; float32 is left to the compiler's choice of TF32."""
    return () if dtype == "fp32" else (HALF_PRODUCT[capability],)


def sizes(*names: str) -> Mapping[str, str]:
    """Types of the scale and of lengths, which need not be multiples of anything."""
    return {"scale": "fp32", **dict.fromkeys(names, "i32")}


def tensor_strides(*tensors: str) -> Mapping[str, str]:
    """Types of the strides of batch, token and head of each tensor."""
    return {f"{tensor}_{axis}": "i32" for tensor in tensors for axis in "bln"}


def itemsize(dtype: str) -> int:
    return 4 if dtype == "fp32" else 2


def precision(dtype: str) -> str:
    return "tf32x3" if dtype == "fp32" else "tf32"
