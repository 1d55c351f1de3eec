"""The attention tangent: forms against forward-mode differentiation of the definition."""

from __future__ import annotations

import pytest
import torch

from tests.ops.forms import FORMS, error, form, randn
from turbodiffusion.errors import UsageError
from turbodiffusion.ops import dual
from turbodiffusion.ops.attention import attention
from turbodiffusion.ops.tangent import attention_tangent

naive, portable = form("tangent", "naive"), form("tangent", "portable")
SHAPES = [(1, 5, 16), (33, 77, 16), (130, 1, 8), (64, 200, 32)]


def double_attention(q, k, v):
    """The definition once more, in the precision of its inputs."""
    scores = torch.einsum("blnd,bsnd->bnls", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bnls,bsnd->blnd", scores.softmax(-1), v)


def inputs(length, keys, width, dtype=torch.float32, heads=2, batch=2):
    return [
        randn(batch, n, heads, width, dtype=dtype, seed=i)
        for i, n in enumerate((length, keys, keys) * 2)
    ]


@FORMS
@pytest.mark.parametrize(("length", "keys", "width"), SHAPES)
@pytest.mark.parametrize("cross", [False, True])
def test_forms_are_the_derivative(length, keys, width, cross, backend):
    given = [x.double() for x in inputs(length, keys, width)]
    if cross:
        given[4:] = [torch.zeros_like(x) for x in given[4:]]
    wanted = torch.func.jvp(double_attention, tuple(given[:3]), tuple(given[3:]))
    passed = [*given[:4], None, None] if cross else given
    found = form("tangent", backend).attention_tangent(*passed)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype is torch.float64
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    small = [None if x is None else x.float() for x in passed]
    for a, b in zip(form("tangent", backend).attention_tangent(*small), wanted, strict=True):
        assert a.dtype is torch.float32 and (a - b).norm() <= 3e-6 * b.norm() + 1e-6


@FORMS
def test_against_differences(backend):
    given = [x.double() for x in inputs(20, 30, 16)]
    h = 1e-5
    ahead, behind = (
        double_attention(*(x + s * h * t for x, t in zip(given[:3], given[3:], strict=True)))
        for s in (1, -1)
    )
    found = form("tangent", backend).attention_tangent(*given)[1]
    torch.testing.assert_close(found, (ahead - behind) / (2 * h), rtol=0, atol=1e-8)


def test_slices_of_queries_are_independent(monkeypatch):
    given = inputs(50, 40, 16)
    whole = portable.attention_tangent(*given)
    monkeypatch.setitem(portable.ELEMENTS, "cpu", 7 * 2 * 2 * 40)
    for a, b in zip(portable.attention_tangent(*given), whole, strict=True):
        assert error(a, b) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype):
    given = inputs(33, 77, 16, dtype)
    wanted = naive.attention_tangent(*(x.float() for x in given))
    for a, b in zip(portable.attention_tangent(*given), wanted, strict=True):
        assert a.dtype is dtype and error(a, b) < (4e-3 if dtype is torch.bfloat16 else 5e-4)


def test_dual_numbers_meet_the_operator():
    given = inputs(20, 30, 16)
    wanted = naive.attention_tangent(*given)
    zero = naive.attention_tangent(*given[:4], None, None)
    with dual.streamed_attention(), torch.autograd.forward_ad.dual_level():
        duals = [
            torch.autograd.forward_ad.make_dual(x, t)
            for x, t in zip(given[:3], given[3:], strict=True)
        ]
        found = torch.autograd.forward_ad.unpack_dual(attention(*duals))
        text = torch.autograd.forward_ad.unpack_dual(attention(duals[0], *given[1:3]))
        plain = torch.autograd.forward_ad.unpack_dual(attention(*given[:3]))
    for a, b in ((found[0], wanted[0]), (found[1], wanted[1]), (text[1], zero[1])):
        assert error(a, b) < 1e-5
    assert plain.tangent is None and error(plain.primal, wanted[0]) < 1e-5


@pytest.mark.parametrize("position", [1, 3, 4, 5])
def test_shapes_that_do_not_belong_together(position):
    given = inputs(6, 7, 8)
    given[position] = randn(2, 6, 2, 4)
    with pytest.raises(UsageError, match=r"\(2, 6, 2, 4\)" if position < 5 else "tangent"):
        attention_tangent(*given)


def test_tangents_of_keys_and_values_come_together():
    given = inputs(6, 7, 8)
    with pytest.raises(UsageError, match="neither"):
        attention_tangent(*given[:5], None)
