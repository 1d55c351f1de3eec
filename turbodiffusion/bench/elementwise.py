"""Rows of the norms and the rotation: bandwidth against a copy.

The bytes are what the operator has to read and write once. The rivals are the same function in
plain PyTorch: its fused norm in the dtype of the activations, ``eager`` where more follows it, and
the portable form, which casts up and down.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from turbodiffusion.bench.cases import Case, Contest, Error, Setting, compare
from turbodiffusion.bench.shapes import Geometry, Shape
from turbodiffusion.bench.timing import Call
from turbodiffusion.ops import backend, rope
from turbodiffusion.ops.norm import (
    layer_norm,
    layer_norm_modulate,
    layer_norm_modulate_quantize,
    layer_norm_quantize,
    naive,
    portable,
    rms_norm,
)
from turbodiffusion.ops.rope import naive as rope_naive

CHECKED = 64  # rows at either end


def cases(s: Shape, g: Geometry) -> list[Case]:
    """The element-wise rows of one shape. Activations are bf16, int8 where quantised."""
    ld = s.tokens * s.dim

    def case(name: str, size: float, make: Callable[[Shape, Setting], Contest]) -> Case:
        return Case(name, "", s, "copy", 0, size * ld, lambda x: make(s, x))

    return [
        case("rms_norm", 4, _rms),
        case("layer_norm", 4, _layer),
        case("layer_norm_modulate", 4, _modulate),
        case("layer_norm_quantize", 3 + 4 / 128, _layer_quantize),
        case("modulate_quantize", 3 + 4 / 128, _modulate_quantize),
        # The table of cosines and sines is float32, half a head wide each, and shared by the heads.
        case("rms_norm_rope", 4 + 4 / s.heads, _rms_rope),
    ]


def ends(x: Tensor) -> Tensor:
    """The first and the last rows of (1, L, …), which are all a norm needs to be checked."""
    return torch.cat([x[:, :CHECKED], x[:, -CHECKED:]], 1)


def contest(
    x: Setting, operator: str, ours: Callable[..., Tensor], exact: Callable[..., Tensor],
    rivals: dict[str, Callable[..., Tensor]], rows: tuple[Tensor, ...], shared: tuple[object, ...],
) -> Contest:  # fmt: skip
    """Our call and its rivals on ``rows`` and ``shared``; only ``rows`` are cut for the check."""
    how = f"over {2 * CHECKED} rows, in float32"

    def bound(call: Callable[..., Tensor]) -> Call:
        return lambda: call(*rows, *shared)

    def error() -> Error:
        expected = exact(*(ends(r).float() for r in rows), *shared)
        return compare(ends(ours(*rows, *shared)), expected, how)

    return Contest(
        bound(ours), {name: bound(call) for name, call in rivals.items()}, error,
        backend.resolve(operator, x.device).backend,
    )  # fmt: skip


def _weights(s: Shape, x: Setting) -> tuple[Tensor, Tensor]:
    return 1 + x.randn(s.dim, seed=1, scale=0.1), x.randn(s.dim, seed=2, scale=0.1)


def _modulation(s: Shape, x: Setting) -> tuple[Tensor, Tensor]:
    scale, shift = (x.randn(1, 1, s.dim, seed=i, scale=0.1).float() for i in (3, 4))
    return scale, shift


def _tokens(s: Shape, x: Setting) -> Tensor:
    return x.randn(1, s.tokens, s.dim) + 0.5


def _rms(s: Shape, x: Setting) -> Contest:
    weight, eps = _weights(s, x)[0], s.card.dit.eps
    rivals = {
        "F.rms_norm": lambda h, w, e: F.rms_norm(h, (s.dim,), w, e),
        "portable": portable.rms_norm,
    }
    return contest(x, "norm", rms_norm, naive.rms_norm, rivals, (_tokens(s, x),), (weight, eps))


def _layer(s: Shape, x: Setting) -> Contest:
    rivals = {
        "F.layer_norm": lambda h, w, b, e: F.layer_norm(h, (s.dim,), w, b, e),
        "portable": lambda h, w, b, e: portable.layer_norm(h, w, b, e, False),
    }
    return contest(
        x, "norm", layer_norm, lambda h, w, b, e: naive.layer_norm(h, w, b, e, False), rivals,
        (_tokens(s, x),), (*_weights(s, x), s.card.dit.eps),
    )  # fmt: skip


def _rms_rope(s: Shape, x: Setting) -> Contest:
    def eager(h: Tensor, w: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The norm, then the rotation by complex numbers, as the original Wan does it."""
        n = (
            F.rms_norm(h, (s.dim,), w, s.card.dit.eps)
            .float()
            .view(1, -1, s.heads, s.head_dim // 2, 2)
        )
        turned = torch.view_as_complex(n) * torch.complex(cos, sin)[None, :, None]
        return torch.view_as_real(turned).flatten(-2).to(h.dtype)

    def exact(h: Tensor, w: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = ends(cos[None])[0], ends(sin[None])[0]
        return rope_naive.rms_norm_rope(h, w, cos, sin, s.card.dit.eps, s.heads)

    def ours(h: Tensor, w: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rope.rms_norm_rope(h, w, (cos, sin), s.card.dit.eps, s.heads)

    table = rope.rope_table(s.grid, s.card.dit.rope_split, x.device)
    return contest(
        x, "rope", ours, exact, {"eager": eager}, (_tokens(s, x),), (_weights(s, x)[0], *table)
    )  # fmt: skip


def _plain_modulate(h: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """As eager code writes it, all in the dtype of the activations."""
    n = F.layer_norm(h, h.shape[-1:], eps=eps)
    return n * (1 + scale).to(h.dtype) + shift.to(h.dtype)


def _modulate(s: Shape, x: Setting) -> Contest:
    rivals = {"eager": _plain_modulate, "portable": portable.layer_norm_modulate}
    return contest(
        x, "norm", layer_norm_modulate, naive.layer_norm_modulate, rivals, (_tokens(s, x),),
        (*_modulation(s, x), s.card.dit.eps),
    )  # fmt: skip


def _restored(call: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """What a quantising call stands for, in float32, so that errors compare values."""

    def values(h: Tensor, *more: object) -> Tensor:
        q, scale = call(h, *more)
        return (q.float() * scale.repeat_interleave(128, -1)).view(h.shape)

    return values


def _quantizing(
    x: Setting, ours: Callable[..., tuple[Tensor, Tensor]], exact: Callable[..., Tensor],
    rivals: dict[str, Callable[..., Tensor]], h: Tensor, shared: tuple[object, ...],
) -> Contest:  # fmt: skip
    """As :func:`contest`; the error against the unquantised definition is that of int8 itself."""
    made = contest(x, "norm", _restored(ours), exact, rivals, (h,), shared)

    def error() -> Error:
        found = made.error()
        return Error(found.l2, found.l1, found.cosine, f"{found.how}, rounding to int8 included")

    return Contest(lambda: ours(h, *shared), made.rivals, error, made.form)


def _layer_quantize(s: Shape, x: Setting) -> Contest:
    rivals: dict[str, Callable[..., Tensor]] = {
        "eager": lambda h, w, b, e: _plain_quantize(F.layer_norm(h, (s.dim,), w, b, e))
    }
    return _quantizing(
        x, layer_norm_quantize, lambda h, w, b, e: naive.layer_norm(h, w, b, e, False), rivals,
        _tokens(s, x), (*_weights(s, x), s.card.dit.eps),
    )  # fmt: skip


def _modulate_quantize(s: Shape, x: Setting) -> Contest:
    rivals: dict[str, Callable[..., Tensor]] = {
        "eager": lambda *a: _plain_quantize(_plain_modulate(*a))
    }
    return _quantizing(
        x, layer_norm_modulate_quantize, naive.layer_norm_modulate, rivals, _tokens(s, x),
        (*_modulation(s, x), s.card.dit.eps),
    )  # fmt: skip


def _plain_quantize(h: Tensor) -> Tensor:
    """Groups of 128 in eager PyTorch; the scale is dropped, which costs it nothing."""
    groups = h.unflatten(-1, (-1, 128))
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-8) / 127
    return (groups / scale).round_().to(torch.int8)
