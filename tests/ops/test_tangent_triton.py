"""The kernel of the attention tangent against the definition."""

from __future__ import annotations

import pytest
import torch

from tests.ops.forms import error, form, randn
from tests.ops.interpreter import DEVICES, KERNEL_CASES
from turbodiffusion.errors import UsageError
from turbodiffusion.ops.tangent import attention_tangent

pytest.importorskip("triton", reason="Triton is not installed; it exists for Linux and Windows")

naive = form("tangent", "naive")
# Relative L2, as for plain attention: weights are rounded before the second products.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}


def inputs(length, keys, width, dtype, device, heads=1):
    return [
        randn(1, n, heads, width, dtype=dtype, seed=i).to(device)
        for i, n in enumerate((length, keys, keys) * 2)
    ]


@KERNEL_CASES
@pytest.mark.parametrize(
    ("length", "keys", "width"), [(1, 5, 64), (63, 77, 16), (129, 129, 32), (65, 300, 128)]
)
@pytest.mark.parametrize("moves", [True, False])
def test_value_and_tangent(length, keys, width, moves, triton_form, device, dtype):
    given = inputs(length, keys, width, dtype, device)
    if not moves:
        given[4:] = [None, None]
    found, wanted = attention_tangent(*given), naive.attention_tangent(*given)
    for name, a, b in zip(("value", "tangent"), found, wanted, strict=True):
        assert a.dtype is dtype and error(a, b) < TOLERANCE[dtype], name


@DEVICES
def test_one_key_does_not_weigh(triton_form, device):
    """The softmax over one key is 1: the value's tangent is all there is."""
    given = inputs(40, 1, 16, torch.float32, device)
    value, tangent = attention_tangent(*given)
    torch.testing.assert_close(value, given[2].expand_as(value))
    torch.testing.assert_close(tangent, given[5].expand_as(value), rtol=0, atol=1e-5)


@DEVICES
def test_strided_inputs_are_read_in_place(triton_form, device):
    packed = randn(2, 50, 6, 3, 16).to(device)
    q, k, v, tq, tk, tv = packed.unbind(2)
    wanted = naive.attention_tangent(q, k, v, tq, tk, tv)
    for a, b in zip(attention_tangent(q, k, v, tq, tk, tv), wanted, strict=True):
        assert error(a, b) < 1e-5
    swapped = [x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2) for x in (q, k, v)]
    for a, b in zip(attention_tangent(*swapped, tq, tk, tv), wanted, strict=True):
        assert error(a, b) < 1e-5


@DEVICES
def test_large_scores_do_not_overflow(triton_form, device):
    q = 300 * randn(1, 63, 1, 16).to(device)
    moved = randn(1, 63, 1, 16, seed=1).to(device)
    value, tangent = attention_tangent(q, q, q, moved, moved, moved)
    assert error(value, q) < 1e-2 and error(tangent, moved) < 1e-2  # every token sees itself only


@DEVICES
def test_no_value_is_read_behind_the_end(triton_form, device):
    """Poison after the last key and query must not show."""
    given = [torch.full((1, 90, 1, 16), float("nan"), device=device) for _ in range(6)]
    for i, x in enumerate(given):
        x[:, :45] = randn(1, 45, 1, 16, seed=i).to(device)
    cut = [x[:, :45] for x in given]
    wanted = naive.attention_tangent(*cut)
    for a, b in zip(attention_tangent(*cut), wanted, strict=True):
        assert error(a, b) < 1e-5


@DEVICES
def test_widths_that_the_kernel_does_not_take(triton_form, device):
    with pytest.raises(UsageError, match="24"):
        attention_tangent(*inputs(4, 4, 24, torch.float32, device))
