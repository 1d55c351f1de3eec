"""Norms: both forms against each other and against float64 written out here."""

from __future__ import annotations

import pytest
import torch

from tests.ops.forms import DTYPES, FORMS, LENGTHS, TOLERANCE, error, form, randn
from turbodiffusion.ops.norm import layer_norm, layer_norm_modulate, rms_norm

WIDTHS = (1, 63, 96, 1536)
EPS = 1e-6


@pytest.fixture(params=["naive", "portable"], autouse=True)
def forced(request, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", request.param)


@DTYPES
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(width, dtype):
    x, weight = 3 * randn(2, 5, width, dtype=dtype), randn(width)
    z = x.double()
    expected = z / (z.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
    out = rms_norm(x, weight, EPS)
    assert out.dtype is dtype
    assert error(out, expected) < TOLERANCE[dtype]


@DTYPES
@pytest.mark.parametrize("width", [63, 96, 1536])
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm(width, dtype, affine):
    x = 3 * randn(2, 5, width, dtype=dtype) + 1
    weight, bias = (randn(width), randn(width, seed=1)) if affine else (None, None)
    z = x.double()
    expected = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + EPS).sqrt()
    if weight is not None and bias is not None:
        expected = expected * weight.double() + bias.double()
    out = layer_norm(x, weight, bias, EPS)
    assert out.dtype is dtype
    assert error(out, expected) < TOLERANCE[dtype]


@DTYPES
@pytest.mark.parametrize("length", LENGTHS)
def test_modulation_rounds_the_norm_first(length, dtype):
    x = randn(2, length, 96, dtype=dtype)
    scale, shift = randn(2, 1, 96), randn(2, 1, 96, seed=1)
    n = layer_norm(x).double()
    out = layer_norm_modulate(x, scale, shift, EPS)
    assert out.dtype is dtype
    assert error(out, n * (1 + scale.double()) + shift.double()) < TOLERANCE[dtype]


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_one_rounding_whatever_the_dtype_of_the_weight(norm):
    x, weight = randn(4, 96, dtype=torch.bfloat16), randn(96, dtype=torch.bfloat16)
    apply = {"rms": lambda x, w: rms_norm(x, w, EPS), "layer": lambda x, w: layer_norm(x, w, w)}
    exact = apply[norm](x.float(), weight.float())
    for weight_dtype in (torch.bfloat16, torch.float32):
        out = apply[norm](x, weight.to(weight_dtype))
        assert torch.equal(out, exact.bfloat16())


def test_released_variance_counts_the_padding():
    x = randn(4, 1536) + 0.5
    mean = x.double().mean(-1, keepdim=True)
    variance = x.double().var(-1, correction=0, keepdim=True) + mean**2 * (2048 - 1536) / 1536
    expected = (x.double() - mean) / (variance + EPS).sqrt()
    assert error(layer_norm(x, released_numerics=True), expected) < 1e-6
    assert error(layer_norm(x), expected) > 0.02
    power = randn(4, 64) + 0.5  # no padding, no defect
    assert error(layer_norm(power, released_numerics=True), layer_norm(power)) < 1e-6


@DTYPES
def test_zeros_and_outliers_stay_finite(dtype):
    zeros = torch.zeros(2, 96, dtype=dtype)
    assert rms_norm(zeros, torch.ones(96), EPS).eq(0).all()
    assert layer_norm(zeros).eq(0).all()
    spike = zeros.clone()
    spike[:, 7] = 1e18  # its square still fits in float32
    assert rms_norm(spike, torch.ones(96), EPS)[0, 7].item() == pytest.approx(96**0.5, rel=4e-3)
    assert layer_norm(spike).isfinite().all()


def test_gradients_agree_between_forms():
    x, weight, bias = randn(2, 63, 96), randn(96), randn(96, seed=1)
    scale, shift = randn(2, 1, 96), randn(2, 1, 96, seed=1)
    naive, portable = form("norm", "naive"), form("norm", "portable")
    cases = [
        ("rms_norm", (x, weight), (EPS,)),
        ("layer_norm", (x, weight, bias), (EPS, False)),
        ("layer_norm_modulate", (x, scale, shift), (EPS,)),
    ]
    for name, tensors, rest in cases:
        gradients = []
        for module in (naive, portable):
            leaves = [t.clone().requires_grad_() for t in tensors]
            out = getattr(module, name)(*leaves, *rest)
            gradients.append(torch.autograd.grad(out, leaves, randn(*out.shape)))
        for a, b in zip(*gradients, strict=True):
            assert error(b, a) < 5e-6, name


@FORMS
def test_input_is_left_alone(backend):
    x = randn(2, 63)
    before = x.clone()
    form("norm", backend).layer_norm(x, None, None, EPS, False)
    assert torch.equal(x, before)
