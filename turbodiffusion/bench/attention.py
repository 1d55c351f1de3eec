"""Rows of attention: the block map, SLA both ways, 8-bit attention dense and sparse.

A sparse row counts ``4 L n d`` operations, n kept keys a query, and its time includes everything
from q, k and v to the output: block map, quantisation, linear branch and projection. The rival of
every attention row is the fastest dense bf16 attention of PyTorch at the same size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from turbodiffusion.bench.cases import Case, Contest, Error, Setting, compare
from turbodiffusion.bench.reference import Rows, dense_rows, sla_rows
from turbodiffusion.bench.shapes import (
    Geometry,
    Shape,
    cross_flops,
    dense_flops,
    map_flops,
    sparse_flops,
)
from turbodiffusion.bench.timing import Call
from turbodiffusion.ops import backend
from turbodiffusion.ops.attention import attention
from turbodiffusion.ops.sage import sage_attention, sage_sparse_linear_attention
from turbodiffusion.ops.sla import naive, select_blocks, sparse_linear_attention

DENSE = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
}
CHECKED_TOKENS = 1000  # at which gradients are compared with the definition's, all of them


def cases(s: Shape, g: Geometry) -> list[Case]:
    """The attention rows of one shape."""
    ld = s.tokens * s.dim
    cost = sparse_flops(s, g)
    return [
        # Reads q and k once; the map it writes is small.
        Case("block_map", "", s, "bf16", map_flops(s, g), 4 * ld, lambda x: _map(s, x)),
        # Reads q, k and v and writes the output once.
        Case("sla", "", s, "bf16", cost, 8 * ld, lambda x: _sla(s, x)),
        # Five products where the forward pass has two; q, k, v, o and its gradient in, three out.
        Case("sla_backward", "", s, "bf16", 2.5 * cost, 16 * ld, lambda x: _backward(s, x)),
        Case("sage", "", s, "8-bit", dense_flops(s), 8 * ld, lambda x: _sage(s, x)),
        Case("sagesla", "", s, "8-bit", cost, 8 * ld, lambda x: _sagesla(s, x)),
        Case(
            "cross_attention", "", s, "bf16", cross_flops(s), 4 * ld + 4 * s.text * s.dim,
            lambda x: _cross(s, x),
        ),
    ]  # fmt: skip


def _qkv(s: Shape, x: Setting, keys: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Normal q and v; k is shifted by channel, as trained keys are and as smoothing expects."""
    n, d = s.heads, s.head_dim
    q = x.randn(1, s.tokens, n, d, seed=0)
    k, v = (x.randn(1, keys or s.tokens, n, d, seed=i) for i in (1, 2))
    return q, k + x.randn(1, 1, n, d, seed=3), v


def _projection(s: Shape, x: Setting) -> tuple[Tensor, Tensor]:
    d = s.head_dim
    return x.randn(d, d, seed=4, scale=d**-0.5), x.randn(d, seed=5, scale=0.1)


def _kept(x: Setting) -> dict[str, Any]:
    g = x.geometry
    return {"topk": g.topk, "block_q": g.block_q, "block_k": g.block_k}


def _dense(x: Setting, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Call]:
    """PyTorch's attentions on tensors laid out as they like them."""
    q, k, v = (t.transpose(1, 2).contiguous() for t in (q, k, v))
    if x.device.type != "cuda":
        q32, k32, v32 = q.float(), k.float(), v.float()
        return {
            "SDPA": lambda: F.scaled_dot_product_attention(q, k, v),
            "SDPA fp32": lambda: F.scaled_dot_product_attention(q32, k32, v32),
        }

    def limited(kind: SDPBackend) -> Call:
        def call() -> Tensor:
            with sdpa_kernel(kind):
                return F.scaled_dot_product_attention(q, k, v)

        return call

    return {name: limited(kind) for name, kind in DENSE.items()}


def _form(operator: str, x: Setting) -> str:
    return backend.resolve(operator, x.device).backend


def _map(s: Shape, x: Setting) -> Contest:
    q, k, _ = _qkv(s, x)
    g = x.geometry

    def error() -> Error:
        """Scores of the kept blocks against the largest scores there are."""
        rows = Rows.pick(s.tokens, s.heads, g.block_q)
        heads = list(rows.heads)
        blocks = select_blocks(q, k, **_kept(x))[:, heads].long()
        score = naive.block_scores(q[:, :, heads], k[:, :, heads], g.block_q, g.block_k)
        best = score.sort(-1, descending=True).values[..., : blocks.shape[-1]].sum(-1)
        how = f"of the scores kept, over all query blocks of {len(heads)} heads"
        return compare(score.gather(-1, blocks).sum(-1), best, how)

    return Contest(
        lambda: select_blocks(q, k, **_kept(x)), {"PyTorch": lambda: _plain_map(q, k, x)}, error,
        _form("sla", x),
    )  # fmt: skip


def _plain_map(q: Tensor, k: Tensor, x: Setting) -> Tensor:
    """The same choice in plain PyTorch: portable scores and ``torch.topk``."""
    from turbodiffusion.ops.sla import portable

    g = x.geometry
    score = portable.block_scores(q, k, g.block_q, g.block_k)
    return score.topk(max(1, int(g.topk * score.shape[-1])), dim=-1).indices


def _sparse(operator: Callable[..., Tensor], name: str, s: Shape, x: Setting) -> Contest:
    q, k, v = _qkv(s, x)
    weight, bias = _projection(s, x)

    def call(**more: Tensor) -> Tensor:
        return operator(q, k, v, weight, bias, **_kept(x), feature_map="softmax", **more)

    def error() -> Error:
        blocks = select_blocks(q, k, **_kept(x))
        rows = Rows.pick(s.tokens, s.heads, x.geometry.block_q)
        expected = sla_rows(rows, q, k, v, weight, bias, blocks, x.geometry)
        return compare(rows.of(call(blocks=blocks)), expected, rows.how)

    return Contest(call, _dense(x, q, k, v), error, _form(name, x))


def _sla(s: Shape, x: Setting) -> Contest:
    return _sparse(sparse_linear_attention, "sla", s, x)


def _sagesla(s: Shape, x: Setting) -> Contest:
    return _sparse(sage_sparse_linear_attention, "sage", s, x)


def _full(
    operator: Callable[..., Tensor], name: str, s: Shape, x: Setting, keys: int = 0
) -> Contest:
    q, k, v = _qkv(s, x, keys)

    def error() -> Error:
        rows = Rows.pick(s.tokens, s.heads, 128)
        return compare(rows.of(operator(q, k, v)), dense_rows(rows, q, k, v), rows.how)

    return Contest(lambda: operator(q, k, v), _dense(x, q, k, v), error, _form(name, x))


def _sage(s: Shape, x: Setting) -> Contest:
    def operator(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = sage_attention(q, k, v)
        assert isinstance(out, Tensor)
        return out

    return _full(operator, "sage", s, x)


def _cross(s: Shape, x: Setting) -> Contest:
    return _full(attention, "attention", s, x, keys=s.text)


def _backward(s: Shape, x: Setting) -> Contest:
    leaves = [t.requires_grad_() for t in (*_qkv(s, x), *_projection(s, x))]
    q, k, v, weight, bias = leaves
    out = sparse_linear_attention(q, k, v, weight, bias, **_kept(x), feature_map="softmax")
    grad = x.randn(*out.shape, seed=6)

    def rival(forward: Call, inputs: list[Tensor]) -> Call:
        """The backward pass of one of PyTorch's attentions; the forward pass runs once."""
        saved: list[Tensor] = []

        def call() -> object:
            if not saved:
                out = forward()
                assert isinstance(out, Tensor)
                saved.extend((out, torch.ones_like(out)))
            return torch.autograd.grad(saved[0], inputs, saved[1], retain_graph=True)

        return call

    inputs = [t.detach().transpose(1, 2).contiguous().requires_grad_() for t in leaves[:3]]
    dense = _dense(x, *(t.transpose(1, 2) for t in inputs))
    return Contest(
        lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True),
        {name: rival(call, inputs) for name, call in dense.items()},
        lambda: _gradient_error(s, x),
        _form("sla", x),
    )


def _gradient_error(s: Shape, x: Setting) -> Error:
    """All gradients of a short clip against autograd of the definition."""
    n, d, g = min(2, s.heads), s.head_dim, x.geometry
    inputs = [x.randn(1, CHECKED_TOKENS, n, d, seed=i) for i in range(3)] + [*_projection(s, x)]
    blocks = select_blocks(inputs[0], inputs[1], **_kept(x))
    grad = x.randn(1, CHECKED_TOKENS, n, d, seed=6)

    def gradients(call: Callable[..., Tensor]) -> Tensor:
        leaves = [t.clone().requires_grad_() for t in inputs]
        found = torch.autograd.grad(call(*leaves), leaves, grad)
        return torch.cat([t.flatten().double() / t.double().norm() for t in found])

    def operator(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return sparse_linear_attention(
            q, k, v, weight, bias, **_kept(x), feature_map="softmax", blocks=blocks
        )

    def definition(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return naive.sparse_linear_attention(
            q, k, v, weight, bias, blocks.long(), g.block_q, g.block_k, "softmax"
        )

    ours, exact = gradients(operator), gradients(definition)
    return compare(ours, exact, f"all gradients at {CHECKED_TOKENS} tokens of {n} heads")
