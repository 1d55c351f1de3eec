"""The attention kernels against the definition: values, gradients, log-sum-exp, odd shapes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.ops.forms import error, form, randn
from tests.ops.interpreter import DEVICES, KERNEL_CASES
from turbodiffusion.errors import UsageError
from turbodiffusion.ops.attention import attention
from turbodiffusion.ops.attention.config import AttentionConfig
from turbodiffusion.ops.attention.merge import merge

pytest.importorskip("triton", reason="Triton is not installed; it exists for Linux and Windows")

naive = form("attention", "naive")
# Relative L2: float32 is three TF32 products on a GPU; half precision rounds weights and output.
VALUES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}
GRADIENTS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def triton():
    """Imported late: the interpreter must be switched on before."""
    return form("attention", "triton")


def qkv(length: int, keys: int, heads: int, width: int, dtype: torch.dtype, device) -> list[Tensor]:
    return [
        randn(1, n, heads, width, dtype=dtype, seed=i).to(device)
        for i, n in enumerate((length, keys, keys))
    ]


@KERNEL_CASES
@pytest.mark.parametrize(
    ("length", "keys", "width"),
    [(1, 5, 64), (63, 77, 16), (129, 129, 32), (600, 1, 16), (65, 512, 64), (130, 1000, 128)],
)
def test_values_and_gradients(length, keys, width, triton_form, device, dtype):
    inputs = [x.requires_grad_() for x in qkv(length, keys, 1, width, dtype, device)]
    grad = randn(1, length, 1, width, dtype=dtype).to(device)
    out, expected = attention(*inputs), naive.attention(*inputs)
    assert out.dtype is dtype and error(out, expected) < VALUES[dtype]
    for name, a, b in zip(
        "qkv",
        torch.autograd.grad(out, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        if keys == 1 and name != "v":  # zero but for rounding
            assert a.abs().max() < 10 * GRADIENTS[dtype], name
        else:
            assert error(a, b) < GRADIENTS[dtype], name


@DEVICES
def test_strided_inputs_are_read_in_place(triton_form, device):
    """q, k and v as slices of one product, two batch entries and heads."""
    packed = randn(2, 70, 3, 2, 16).to(device)
    q, k, v = packed.unbind(2)
    assert error(attention(q, k, v), naive.attention(q, k, v)) < 1e-5
    swapped = [x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2) for x in (q, k, v)]
    assert swapped[0].stride(-1) != 1
    assert error(attention(*swapped), naive.attention(q, k, v)) < 1e-5


@DEVICES
def test_large_scores_do_not_overflow(triton_form, device):
    q = 300 * randn(1, 63, 1, 16).to(device)
    out = attention(q, q, q)
    assert out.isfinite().all() and error(out, q) < 1e-2  # every token sees itself only


@DEVICES
@pytest.mark.parametrize(("peel", "parts"), [(True, 1), (False, 1), (True, 2), (False, 4)])
def test_the_last_keys_apart_or_masked_in_the_loop(peel, parts, triton_form, device):
    """Also with the rows in parts, of which the last ones are empty."""
    q, k, v = qkv(40, 150, 2, 16, torch.float32, device)
    for keys in (150, 96, 20):
        config = AttentionConfig(16 * parts, 32, 4, 2, peel, parts)
        out, lse = triton().attend(q, k[:, :keys], v[:, :keys], config=config)
        expected = naive.attention(q, k[:, :keys], v[:, :keys])
        assert error(out, expected) < 1e-5
        scores = torch.einsum("blnd,bsnd->bnls", q, k[:, :keys]) / 4
        assert error(lse, scores.logsumexp(-1) / math.log(2)) < 1e-5


@DEVICES
def test_parts_merge_to_the_whole(triton_form, device):
    q, k, v = qkv(33, 90, 2, 16, torch.float32, device)
    whole, lse = triton().attend(q, k, v)
    parts = [triton().attend(q, k[:, a:b], v[:, a:b]) for a, b in ((0, 7), (7, 64), (64, 90))]
    parts.append((torch.zeros_like(whole), torch.full_like(lse, -math.inf)))
    merged, merged_lse = merge(*zip(*parts, strict=True))
    assert error(merged, whole) < 1e-6 and error(merged_lse, lse) < 1e-6


def test_merging_nothing_is_nothing():
    nothing = torch.zeros(1, 3, 1, 8), torch.full((1, 1, 3), -math.inf)
    out, lse = merge(*zip(nothing, nothing, strict=True))
    assert out.eq(0).all() and lse.isneginf().all()


@DEVICES
def test_widths_and_dtypes_without_kernels(triton_form, device):
    for q in (randn(1, 4, 2, 24), randn(1, 4, 2, 16).double()):
        q = q.to(device)
        with pytest.raises(UsageError, match=f"{q.shape[-1]} in {q.dtype}"):
            attention(q, q, q)
