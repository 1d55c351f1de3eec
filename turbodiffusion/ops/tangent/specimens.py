"""The attention tangent as it is launched, for self- and for cross-attention."""

from __future__ import annotations

from turbodiffusion.ops.aot import Specimen
from turbodiffusion.ops.attention.specimens import (
    SHAPES,
    itemsize,
    precision,
    product,
    sizes,
    tensor_strides,
)
from turbodiffusion.ops.tangent.config import TangentConfig
from turbodiffusion.ops.tangent.kernel import tangent_kernel

TENSORS = ("q", "k", "v", "tq", "tk", "tv", "o")
FLOAT32 = (64, "fp32")
"""Small networks take the tangent in float32."""


def specimens(capability: int) -> list[Specimen]:
    return [
        specimen(capability, width, dtype, moves)
        for width, dtype in (*SHAPES, FLOAT32)
        for moves in (True, False)
    ] + [specimen(capability, *FLOAT32, moves, tf32=True) for moves in (True, False)]


def specimen(capability: int, width: int, dtype: str, moves: bool, tf32: bool = False) -> Specimen:
    config = TangentConfig.choose(divmod(capability, 10), width, itemsize(dtype), tf32)
    return Specimen(
        f"{'self' if moves else 'cross'} {'tf32' if tf32 else dtype} D={width}",
        tangent_kernel,
        {
            **dict.fromkeys((*TENSORS, "to"), f"*{dtype}"), **sizes("L", "S", "N"),
            "scale_moved": "fp32", **tensor_strides(*TENSORS),
        },
        {
            "D": width, "TILE_Q": config.tile_q, "TILE_K": config.tile_k, "KEYS_MOVE": moves,
            "PRECISION": "tf32" if tf32 else precision(dtype),
        },
        config.num_warps, config.num_stages, product(capability, dtype),
        aligned=tuple(tensor_strides(*TENSORS)),
    )  # fmt: skip
