"""The norm kernels as launched on the widths of the Wan networks, bf16."""

from __future__ import annotations

from turbodiffusion.ops.aot import Specimen
from turbodiffusion.ops.norm.config import RowConfig
from turbodiffusion.ops.norm.kernels import norm_bwd_kernel, norm_fwd_kernel
from turbodiffusion.ops.norm.triton import LAYER, MODULATED, RMS, Form

WIDTHS = (1536, 5120)
FORWARD = {
    "rms": (RMS, True, False, False),
    "layer": (LAYER, False, False, False),
    "affine": (LAYER, True, True, False),
    "modulated": (MODULATED, True, True, False),
    "affine quantised": (LAYER, True, True, True),
    "modulated quantised": (MODULATED._replace(round_first=False), True, True, True),
}
BACKWARD = {
    "rms backward": (RMS, True, False),
    "affine backward": (LAYER, True, True),
    "modulated backward": (MODULATED, True, True),
}


def specimens(capability: int) -> list[Specimen]:
    found = []
    for width in WIDTHS:
        for name, (form, weight, bias, quantize) in FORWARD.items():
            c = RowConfig.quantising(width, 2) if quantize else RowConfig.forward(width, 2)
            constants = _constants(width, c, form, weight, bias) | {"QUANTIZE": quantize}
            vector = "*fp32" if form.plus_one else "*bf16"
            signature = {
                "x": "*bf16", "out": "*i8" if quantize else "*bf16", "length": "i32",
                "x_stride": "i32", "weight_stride": "i32", "bias_stride": "i32", "eps": "fp32",
            }  # fmt: skip
            found.append(
                _specimen(
                    f"{name} {width}", norm_fwd_kernel, c, signature, constants,
                    {"weight": vector if weight else None, "bias": vector if bias else None,
                     "scale": "*fp32" if quantize else None},
                )
            )  # fmt: skip
        c = RowConfig.backward(width, 2)
        for name, (form, weight, bias) in BACKWARD.items():
            vector = "*fp32" if form.plus_one else "*bf16"
            signature = {
                "x": "*bf16", "grad": "*bf16", "dx": "*bf16", "length": "i32", "x_stride": "i32",
                "weight_stride": "i32", "eps": "fp32",
            }  # fmt: skip
            found.append(
                _specimen(
                    f"{name} {width}", norm_bwd_kernel, c, signature,
                    _constants(width, c, form, weight, bias),
                    {"weight": vector, "dweight": "*fp32", "dbias": "*fp32" if bias else None},
                )
            )  # fmt: skip
    return found


def _constants(width: int, c: RowConfig, form: Form, weight: bool, bias: bool) -> dict[str, object]:
    return {
        "D": width, "CHUNK": c.chunk, "COUNT": c.count, "ROWS": c.rows, "CENTRED": form.centred,
        "HAS_WEIGHT": weight, "HAS_BIAS": bias, "PLUS_ONE": form.plus_one,
        "ROUND_FIRST": form.round_first,
    }  # fmt: skip


def _specimen(
    name: str, kernel: object, c: RowConfig, signature: dict[str, str],
    constants: dict[str, object], optional: dict[str, str | None],
) -> Specimen:  # fmt: skip
    """A pointer that is None in the launch is a constant."""
    pointers = {n: kind for n, kind in optional.items() if kind is not None}
    absent = {n: None for n, kind in optional.items() if kind is None}
    return Specimen(
        name, kernel, signature | pointers, constants | absent, num_warps=c.num_warps,
        aligned=("x_stride", "weight_stride", "bias_stride"),
    )  # fmt: skip
