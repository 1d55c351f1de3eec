"""The rotation kernel as launched on the Wan networks, bf16."""

from __future__ import annotations

from turbodiffusion.ops.aot import Specimen
from turbodiffusion.ops.norm.config import RowConfig
from turbodiffusion.ops.rope.kernels import rope_kernel

SHAPES = ((1536, 128), (5120, 128), (128, 64))
"""(width, head width): 1.3B, 14B, and the smallest heads of the embedded models."""


def specimens(capability: int) -> list[Specimen]:
    found = []
    for width, head in SHAPES:
        c = RowConfig.forward(width, 2)
        for name, norm, inverse in (
            ("norm and rotate", True, False), ("rotate", False, False), ("turn back", False, True),
        ):  # fmt: skip
            signature = {
                "x": "*bf16", "cos": "*fp32", "sin": "*fp32", "out": "*bf16",
                "length": "i32", "x_stride": "i32", "eps": "fp32",
            }  # fmt: skip
            constants: dict[str, object] = {
                "D": width, "HEAD": head, "CHUNK": c.chunk, "COUNT": c.count, "ROWS": c.rows,
                "NORM": norm, "INVERSE": inverse,
            }  # fmt: skip
            if norm:
                signature["weight"] = "*bf16"
            else:
                constants["weight"] = None
            found.append(
                Specimen(
                    f"{name} {width}/{head}", rope_kernel, signature, constants,
                    num_warps=c.num_warps, aligned=("x_stride",),
                )
            )  # fmt: skip
    return found
