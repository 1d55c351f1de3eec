"""Rows of the linears: int8 and fp8, plain and with fused epilogues, against cuBLAS.

``int8`` and ``fp8`` rows take bf16 activations and include their quantisation. ``int8_fused`` rows
take int8 ones, as the fused kernels before them leave them, and have the epilogue of their place in
the block: bias; bias, GELU and quantisation; bias, gate and residual. The rival is the bf16 linear
with the same epilogue in eager PyTorch. Beside it stands PyTorch's int8 product, which is less than
a linear: no quantiser, no scales, no bias, int32 out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from turbodiffusion.bench.cases import Case, Contest, Error, Setting, compare
from turbodiffusion.bench.shapes import Geometry, Shape
from turbodiffusion.bench.timing import Call
from turbodiffusion.ops import backend
from turbodiffusion.ops.linear import (
    Quantized,
    dequantize_weight,
    fp8_linear,
    int8_linear,
    int8_linear_gelu,
    int8_linear_residual,
    int8_matmul,
    quantize_fp8,
    quantize_group,
    quantize_weight,
)

CHECKED = 128  # rows at either end
EPILOGUE_BYTES = {"qkv": 2, "o": 4, "ffn1": 1, "ffn2": 4}
"""Bytes an output of the fused product moves: bf16 out; residual in and out; int8 out."""


def layers(s: Shape) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the linears of a block; q, k and v are one product."""
    return {
        "qkv": (3 * s.dim, s.dim),
        "o": (s.dim, s.dim),
        "ffn1": (s.ffn_dim, s.dim),
        "ffn2": (s.dim, s.ffn_dim),
    }


def cases(s: Shape, g: Geometry) -> list[Case]:
    """The linear rows of one shape."""
    makers: tuple[tuple[str, Callable[[str, Shape, Setting], Contest]], ...] = (
        ("int8", _int8), ("int8_fused", _fused), ("fp8", _fp8),
    )  # fmt: skip
    return [
        _case(operator, make, layer, s) for operator, make in makers for layer in layers(s)
    ]  # fmt: skip


def _case(
    operator: str, make: Callable[[str, Shape, Setting], Contest], layer: str, s: Shape
) -> Case:
    n, k = layers(s)[layer]
    if operator == "int8_fused":
        moved = s.tokens * (k + n * EPILOGUE_BYTES[layer]) + n * k
    else:
        moved = s.tokens * (2 * k + 2 * n) + n * k
    return Case(
        operator, layer, s, "8-bit", 2 * s.tokens * n * k, moved, lambda x: make(layer, s, x)
    )


def _operands(layer: str, s: Shape, x: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Activations (L, K), weight (N, K) that keeps their size, bias (N,); bf16."""
    n, k = layers(s)[layer]
    return x.randn(s.tokens, k), x.randn(n, k, seed=1, scale=k**-0.5), x.randn(n, seed=2, scale=0.1)


def ends(x_MK: Tensor) -> Tensor:
    """The first and the last rows. Activations are quantised row by row, so rows are separate."""
    return torch.cat([x_MK[:CHECKED], x_MK[-CHECKED:]])


def _error(actual: Tensor, a_MK: Tensor, w_NK: Tensor, after: Callable[[Tensor], Tensor],
           extra: str = "") -> Error:  # fmt: skip
    """Against the float64 product of the same quantised operands, followed by ``after``."""
    expected = after(a_MK.double() @ w_NK.double().mT)
    how = f"over {len(a_MK)} rows, quantised operands in float64{extra}"
    return compare(actual, expected, how)


def _values(x: Quantized) -> Tensor:
    """What a quantised matrix stands for, float32."""
    return x.q.float() * x.scale.repeat_interleave(128, -1)


def _rows(x: Quantized) -> Quantized:
    return Quantized(ends(x.q), ends(x.scale))


def _int8_alone(a_MK: Tensor, w_NK: Tensor) -> Call:
    """PyTorch's int8 product into int32, without scales, bias or conversion."""
    a, w = (t.clamp(-4, 4).mul(30).to(torch.int8) for t in (a_MK, w_NK))
    return lambda: torch._int_mm(a, w.mT)


def _contest(
    x: Setting, ours: Call, eager: Call, a: Tensor, w: Tensor, error: Callable[[], Error]
) -> Contest:
    form = backend.resolve("linear", x.device).backend
    return Contest(ours, {"bf16": eager}, error, form, {"_int_mm": _int8_alone(a, w)})


def _int8(layer: str, s: Shape, x: Setting) -> Contest:
    a, w, bias = _operands(layer, s, x)
    q, scale = quantize_weight(w)

    def ours() -> Tensor:
        return int8_linear(a, q, scale, bias, activation="group")

    def error() -> Error:
        rows = _values(quantize_group(ends(a)))
        return _error(ends(ours()), rows, dequantize_weight(q, scale), lambda y: y + bias)

    return _contest(x, ours, lambda: F.linear(a, w, bias), a, w, error)


def _fp8(layer: str, s: Shape, x: Setting) -> Contest:
    a, w, bias = _operands(layer, s, x)
    q, scale_N = quantize_fp8(w)

    def ours() -> Tensor:
        return fp8_linear(a, q, scale_N, bias)

    def error() -> Error:
        rows, scale_M = quantize_fp8(ends(a))
        rows, weight = rows.float() * scale_M[:, None], q.float() * scale_N[:, None]
        return _error(ends(ours()), rows, weight, lambda y: y + bias)

    return _contest(x, ours, lambda: F.linear(a, w, bias), a, w, error)


def _fused(layer: str, s: Shape, x: Setting) -> Contest:
    a, w, bias = _operands(layer, s, x)
    quantized = quantize_group(a)
    q, scale = quantize_weight(w)
    epilogue = {"qkv": _store, "ffn1": _gelu, "o": _residual, "ffn2": _residual}[layer]
    ours, eager, value, after = epilogue(quantized, q, scale, bias, a, w, x)

    def error() -> Error:
        extra = ", rounding to int8 included" if layer == "ffn1" else ""
        weight = dequantize_weight(q, scale)
        return _error(value(), _values(_rows(quantized)), weight, after, extra)

    return _contest(x, ours, eager, a, w, error)


Epilogue = tuple[Call, Call, Callable[[], Tensor], Callable[[Tensor], Tensor]]
"""Our call, the eager one, our checked rows as values, and what follows the exact product."""


def _store(
    a8: Quantized, q: Tensor, scale: Tensor, bias: Tensor, a: Tensor, w: Tensor, x: Setting
) -> Epilogue:
    def ours() -> Tensor:
        return int8_matmul(a8, q, scale, bias, x.dtype)

    return ours, lambda: F.linear(a, w, bias), lambda: ends(ours()), lambda y: y + bias


def _gelu(
    a8: Quantized, q: Tensor, scale: Tensor, bias: Tensor, a: Tensor, w: Tensor, x: Setting
) -> Epilogue:
    def ours() -> Quantized:
        return int8_linear_gelu(a8, q, scale, bias)

    def eager() -> Tensor:
        return F.gelu(F.linear(a, w, bias), approximate="tanh")

    def after(y: Tensor) -> Tensor:
        return F.gelu(y + bias, approximate="tanh")

    return ours, eager, lambda: _values(_rows(ours())), after


def _residual(
    a8: Quantized, q: Tensor, scale: Tensor, bias: Tensor, a: Tensor, w: Tensor, x: Setting
) -> Epilogue:
    m, n = a.shape[0], w.shape[0]
    residual, gate = x.randn(1, m, n, seed=3), x.randn(1, 1, n, seed=4)

    def ours() -> Tensor:
        return int8_linear_residual(a8, q, scale, bias, residual, gate)

    def eager() -> Tensor:
        return residual + F.linear(a, w, bias) * gate[0]

    def after(y: Tensor) -> Tensor:
        return ends(residual[0]).double() + (y + bias) * gate[0].double()

    return ours, eager, lambda: ends(ours()[0]), after
