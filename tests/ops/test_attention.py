"""Dense attention: the fused form against the definition."""

from __future__ import annotations

import pytest
import torch

from tests.ops.forms import DTYPES, FORMS, LENGTHS, TOLERANCE, error, form, randn
from turbodiffusion.errors import UsageError
from turbodiffusion.ops.attention import attention

naive, portable = form("attention", "naive"), form("attention", "portable")


@DTYPES
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("keys", [1, 77])
def test_forms_agree_in_values_and_gradients(length, keys, dtype):
    inputs = [randn(2, n, 2, 16, dtype=dtype, seed=i) for i, n in enumerate((length, keys, keys))]
    grad = randn(2, length, 2, 16, dtype=dtype)
    results = []
    for attend in (naive.attention, portable.attention):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = attend(*leaves)
        assert out.dtype is dtype
        results.append([out, *torch.autograd.grad(out, leaves, grad)])
    for name, a, b in zip(("out", "q", "k", "v"), results[1], results[0], strict=True):
        # With one key the softmax is 1 and the gradients of q and k are rounding residues of 0.
        if keys > 1 or name in ("out", "v"):
            assert error(a, b) < TOLERANCE[dtype], name
        else:
            assert a.abs().max() < 1e-2, name


@FORMS
def test_one_key_returns_its_value(backend):
    v = randn(1, 1, 2, 8)
    out = form("attention", backend).attention(randn(1, 5, 2, 8), randn(1, 1, 2, 8), v)
    torch.testing.assert_close(out, v.expand(1, 5, 2, 8))


@FORMS
def test_equal_keys_return_the_mean_value(backend):
    v = randn(1, 63, 2, 8)
    out = form("attention", backend).attention(randn(1, 3, 2, 8), torch.zeros(1, 63, 2, 8), v)
    torch.testing.assert_close(out, v.mean(1, keepdim=True).expand(1, 3, 2, 8))


@FORMS
@DTYPES
def test_large_scores_do_not_overflow(backend, dtype):
    q = 300 * randn(1, 63, 1, 16, dtype=dtype)
    out = form("attention", backend).attention(q, q, q)
    assert out.isfinite().all() and error(out, q) < 1e-2  # every token sees itself only


def test_shapes_that_do_not_belong_together():
    with pytest.raises(UsageError, match=r"\(1, 4, 2, 8\)"):
        attention(randn(1, 4, 2, 8), randn(1, 4, 2, 16), randn(1, 4, 2, 16))
    with pytest.raises(UsageError):
        attention(randn(1, 4, 2, 8), randn(1, 4, 2, 8), randn(1, 5, 2, 8))
