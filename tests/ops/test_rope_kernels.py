"""The rotation kernel, alone and behind the RMS norm, against the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.forms import FORMS, error, form, randn
from tests.ops.interpreter import DEVICES, KERNEL_CASES
from turbodiffusion.errors import UsageError
from turbodiffusion.ops.norm.config import candidates
from turbodiffusion.ops.rope import apply_rope, rms_norm_rope, rope_table

EPS = 1e-6
TOLERANCE = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
SPLIT = {128: (44, 42, 42), 64: (24, 20, 20), 16: (8, 4, 4), 2: (2, 0, 0)}
GRIDS = [(1, 1, 1), (1, 9, 7), (3, 1, 43)]
NARROW, WIDE = [(3, 64), (2, 16), (1, 128), (5, 2)], [(12, 128), (10, 128)]
"""(heads, head width): exact chunks of 1, 2 and 4 heads, and rows with idle lanes."""
CASES = [*((*s, g) for s in NARROW for g in GRIDS), *((*s, (1, 3, 3)) for s in WIDE)]


def table(grid: tuple[int, int, int], head: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return rope_table(grid, SPLIT[head], device)


def turned(x_BLND: Tensor, cos_LP: Tensor, sin_LP: Tensor) -> Tensor:
    even, odd = x_BLND.double().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_LP.double()[:, None], sin_LP.double()[:, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def expected(x_BLD: Tensor, weight: Tensor, cos_LP: Tensor, sin_LP: Tensor, heads: int) -> Tensor:
    z = x_BLD.double()
    z = z / (z.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
    return turned(z.unflatten(-1, (heads, -1)), cos_LP, sin_LP)


@KERNEL_CASES
@pytest.mark.parametrize(("heads", "head", "grid"), CASES, ids=str)
def test_norm_and_rotation(heads, head, grid, triton_form, device, dtype):
    cos, sin = table(grid, head, triton_form)
    x = (2 * randn(2, cos.shape[0], heads * head)).to(triton_form, dtype)
    weight = randn(heads * head).to(triton_form)
    out = rms_norm_rope(x, weight, (cos, sin), EPS, heads)
    assert out.dtype is dtype and out.shape == (2, cos.shape[0], heads, head)
    assert error(out, expected(x, weight, cos, sin, heads)) < TOLERANCE[dtype]


@KERNEL_CASES
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(("heads", "head"), [(3, 64), (5, 2), (2, 128)])
def test_rotation_alone(heads, head, grid, triton_form, device, dtype):
    cos, sin = table(grid, head, triton_form)
    x = randn(2, cos.shape[0], heads, head).to(triton_form, dtype)
    out = apply_rope(x, (cos, sin))
    assert out.dtype is dtype
    assert error(out, turned(x, cos, sin)) < TOLERANCE[dtype]


@KERNEL_CASES
def test_slices_of_a_joint_projection(triton_form, device, dtype):
    cos, sin = table((1, 3, 3), 64, triton_form)
    wide = randn(2, 9, 3 * 384).to(triton_form, dtype)
    weight = randn(384).to(triton_form)
    for part in wide.chunk(3, -1):
        out = rms_norm_rope(part, weight, (cos, sin), EPS, 6)
        assert out.is_contiguous()
        assert error(out, expected(part, weight, cos, sin, 6)) < TOLERANCE[dtype]
        heads = part.unflatten(-1, (6, 64))
        assert error(apply_rope(heads, (cos, sin)), turned(heads, cos, sin)) < TOLERANCE[dtype]


@KERNEL_CASES
def test_outliers_and_zeros(triton_form, device, dtype):
    cos, sin = table((1, 9, 7), 16, triton_form)
    x = randn(1, 63, 32).to(triton_form, dtype)
    x[0, 0] = 0
    x[0, 1, 5] = 6e4
    x[0, 2] *= 1e-6
    weight = randn(32).to(triton_form)
    out, wanted = rms_norm_rope(x, weight, (cos, sin), EPS, 2), expected(x, weight, cos, sin, 2)
    for token in range(63):
        assert error(out[0, token], wanted[0, token]) < TOLERANCE[dtype], token


@KERNEL_CASES
@pytest.mark.parametrize(("heads", "head"), [(3, 64), (2, 16), (5, 2)])
def test_gradients(heads, head, triton_form, device, dtype):
    cos, sin = table((1, 3, 7), head, triton_form)
    x = randn(2, 21, heads * head).to(triton_form, dtype).requires_grad_()
    weight = randn(heads * head).to(triton_form).requires_grad_()
    upstream = randn(2, 21, heads, head, seed=2).to(triton_form, dtype)
    out = rms_norm_rope(x, weight, (cos, sin), EPS, heads)
    actual = torch.autograd.grad(out, (x, weight), upstream)
    wide = x.detach().float().requires_grad_()
    exact = expected(wide, weight, cos, sin, heads)
    wanted = torch.autograd.grad(exact, (wide, weight), upstream.double())
    for a, b, leaf in zip(actual, wanted, (x, weight), strict=True):
        assert a.dtype is leaf.dtype
        assert error(a, b) < max(5e-6, 2 * TOLERANCE[dtype])  # rounded between its two kernels
    rotated = x.unflatten(-1, (heads, head))
    (gradient,) = torch.autograd.grad(apply_rope(rotated, (cos, sin)), x, upstream)
    assert error(gradient.view_as(upstream), turned(upstream, cos, -sin)) < TOLERANCE[dtype]


@DEVICES
@pytest.mark.parametrize("config", candidates(90, 1536), ids=str)
def test_candidates_compute_the_same(config, triton_form, device):
    from turbodiffusion.ops.rope import triton

    cos, sin = table((1, 3, 3), 128, triton_form)
    x, weight = randn(1, 9, 1536).to(triton_form), randn(1536).to(triton_form)
    out = triton.launch(x, weight, cos, sin, EPS, 12, config=config)
    assert error(out, expected(x, weight, cos, sin, 12)) < 1e-6


@DEVICES
@pytest.mark.parametrize("head", [6, 96])
def test_heads_that_are_no_power_of_two(head, triton_form, device):
    cos, sin = rope_table((1, 3, 3), (head - 4, 2, 2), triton_form)
    x, weight = randn(1, 9, 2 * head).to(triton_form), randn(2 * head).to(triton_form)
    out = rms_norm_rope(x, weight, (cos, sin), EPS, 2)
    assert error(out, expected(x, weight, cos, sin, 2)) < 1e-6


@DEVICES
@pytest.mark.parametrize("shape", [(0, 9, 32), (2, 0, 32)])
def test_nothing_to_rotate(shape, triton_form, device):
    rope = rope_table((1, 1, shape[1]), SPLIT[16], triton_form)
    out = rms_norm_rope(randn(*shape).to(triton_form), randn(32).to(triton_form), rope, EPS, 2)
    assert out.shape == (*shape[:2], 2, 16)


@FORMS
def test_torch_forms(backend):
    cos, sin = table((3, 7, 3), 128, torch.device("cpu"))
    x, weight = randn(2, 63, 256), randn(256)
    out = form("rope", backend).rms_norm_rope(x, weight, cos, sin, EPS, 2)
    assert error(out, expected(x, weight, cos, sin, 2)) < 1e-6


def test_sizes_that_do_not_fit():
    rope = table((1, 3, 3), 16, torch.device("cpu"))
    with pytest.raises(UsageError, match="width 32 cannot be cut into 3"):
        rms_norm_rope(randn(1, 9, 32), randn(32), rope, EPS, 3)
    with pytest.raises(UsageError, match=r"8 tokens with heads of 16 need \(8, 8\)"):
        rms_norm_rope(randn(1, 8, 32), randn(32), rope, EPS, 2)
