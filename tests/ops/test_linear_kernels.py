"""The Triton form of the linears against the definition, interpreted and on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.ops.forms import TOLERANCE, error, form, randn
from tests.ops.interpreter import DEVICES, KERNEL_CASES
from turbodiffusion.ops.gpu import capability, has_fp8
from turbodiffusion.ops.linear.config import Fp8Config, GemmConfig, candidates

naive = form("linear", "naive")
LENGTHS = pytest.mark.parametrize("m", [1, 63, 129, 600, 1000])
GRANULARITIES = pytest.mark.parametrize("name", ["quantize_tile", "quantize_group"])
FP8_SUMS = 5e-3
"""Hopper cuts running sums of e4m3 products to about 13 bits: 2e-3 after 48 steps of K = 32."""
# One more rounding to the result's dtype, relative L2.
ROUNDING = TOLERANCE | {torch.float16: 5e-4}


def kernels():
    return form("linear", "triton")


def operands(m, n, k, device, *, name="quantize_group", outlier=True):
    """Quantised activations with a loud row and a row of zeros, quantised weight, and bias."""
    x = randn(m, k)
    if outlier and m > 2:
        x[0] *= 1000
        x[1] = 0
    weight = randn(n, k) / k**0.5
    parts = *getattr(naive, name)(x), *naive.quantize_tile(weight), randn(n)
    return [part.to(device) for part in parts]


def on_cpu(*tensors):
    return [None if t is None else t.cpu() for t in tensors]


def assert_quantised_alike(out, expected):
    """Equal, but for one step where a value lies on a tie and for an ulp of the scale."""
    (q, scale), (q_expected, scale_expected) = on_cpu(*out), on_cpu(*expected)
    assert q.dtype is torch.int8 and q.shape == q_expected.shape
    torch.testing.assert_close(scale, scale_expected, rtol=1e-6, atol=0)
    step = (q.int() - q_expected.int()).abs()
    assert step.max() <= 1 and (step > 0).float().mean() < 1e-3


@KERNEL_CASES
@LENGTHS
@GRANULARITIES
@pytest.mark.parametrize("k", [128, 200])
def test_quantiser(triton_form, device, dtype, m, name, k):
    x = randn(m, k, dtype=dtype)
    x[0, 0], x[-1] = 40.0, 0.0
    q, scale = on_cpu(*getattr(kernels(), name)(x.to(device)))
    q_expected, scale_expected = getattr(naive, name)(x)
    assert torch.equal(scale, scale_expected)
    assert torch.equal(q, q_expected)


@DEVICES
def test_quantiser_rounds_ties_to_even_and_saturates(triton_form, device):
    x = torch.zeros(1, 128)
    x[0, :7] = torch.tensor([1.0, -1.0, 0.5, 1.5 / 128, 0.5 / 128, 127.5 / 128, -2.5 / 128])
    q, scale = on_cpu(*kernels().quantize_tile(x.to(device)))
    assert q[0, :7].tolist() == [127, -128, 64, 2, 0, 127, -2]
    assert scale.tolist() == [[1 / 128]]
    q, scale = on_cpu(*kernels().quantize_group(torch.zeros(3, 256, device=device)))
    assert q.eq(0).all() and scale.eq(torch.tensor(1e-8) / 127).all()


@KERNEL_CASES
@LENGTHS
@GRANULARITIES
def test_product(triton_form, device, dtype, m, name):
    """Exact sums, and results that are the rounded ones of float32."""
    parts = operands(m, 200, 256, device, name=name)
    expected = naive.int8_matmul(*on_cpu(*parts), torch.float32, False)
    full = kernels().int8_matmul(*parts, torch.float32, False).cpu()
    assert error(full, expected) < 1e-6
    if m > 2:
        assert torch.equal(full[1], parts[-1].cpu()), "a row of zeros gives the bias"
    out = kernels().int8_matmul(*parts, dtype, False)
    assert out.dtype is dtype and torch.equal(out.cpu(), full.to(dtype))


@DEVICES
def test_released_rounding(triton_form, device):
    parts = operands(129, 128, 256, device, name="quantize_tile")
    bias = parts.pop()
    bare = kernels().int8_matmul(*parts, None, torch.float16, True)
    out = kernels().int8_matmul(*parts, bias, torch.float16, True)
    assert torch.equal(out, (bare.float() + bias).to(torch.float16))
    assert not torch.equal(out, kernels().int8_matmul(*parts, bias, torch.float16, False))


INTERPRETED = GemmConfig.interpreted()
CONFIGS = [
    replace(INTERPRETED, split_n=1),
    replace(INTERPRETED, block_m=128, split_m=2, group_m=1),
    replace(INTERPRETED, block_n=64, split_n=1),
    replace(INTERPRETED, descriptors=True),
]


@DEVICES
@pytest.mark.parametrize("config", CONFIGS, ids=["whole", "quarters", "narrow", "descriptors"])
def test_every_cut_gives_the_same(triton_form, device, config):
    if config.descriptors and device == "cuda" and capability(triton_form) < (9, 0):
        pytest.skip("descriptors are read by hardware from capability 9.0 on")
    parts = operands(300, 256, 384, device)
    whole = kernels().int8_matmul(*parts, torch.float32, False)
    assert torch.equal(kernels().int8_matmul(*parts, torch.float32, False, config), whole)


@pytest.mark.gpu
@LENGTHS
@pytest.mark.parametrize("k", [128, 1536])
def test_every_candidate_gives_the_same(triton_form, m, k):
    """With every epilogue, for one sample and for two."""
    parts = operands(m, 1280, k, "cuda", outlier=False)
    residual = randn(2 if m % 2 == 0 else 1, m // (1 + (m % 2 == 0)), 1280)
    gate = randn(residual.shape[0], 1, 1280)
    product = naive.int8_matmul(*on_cpu(*parts), torch.float32, False)
    quantised = naive.int8_linear_gelu(*on_cpu(*parts))
    added = naive.int8_linear_residual(*on_cpu(*parts), residual, gate)
    for config in candidates(capability(triton_form), m):
        out = kernels().int8_matmul(*parts, torch.float32, False, config)
        assert error(out.cpu(), product) < 1e-6, config
        out = kernels().int8_matmul(*parts, torch.bfloat16, False, config)
        assert error(out.cpu(), product) < ROUNDING[torch.bfloat16], config
        assert_quantised_alike(kernels().int8_linear_gelu(*parts, config), quantised)
        out = kernels().int8_linear_residual(*parts, residual.cuda(), gate.cuda(), config)
        assert error(out.cpu(), added) < 1e-6, config


@pytest.mark.gpu
def test_many_tiles(triton_form):
    """More tiles than multiprocessors, so that persistent programs go round several times."""
    m, n, k = 9000, 2560, 512
    parts = operands(m, n, k, "cuda")
    rows = torch.randint(0, m, (200,), generator=torch.Generator().manual_seed(0))
    q, scale, *rest = on_cpu(*parts)
    expected = naive.int8_matmul(q[rows], scale[rows], *rest, torch.float32, False)
    for config in candidates(capability(triton_form), m):
        out = kernels().int8_matmul(*parts, torch.float32, False, config)
        assert error(out.cpu()[rows], expected) < 1e-6, config


@DEVICES
@LENGTHS
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bare"])
def test_gelu_and_quantiser_in_the_epilogue(triton_form, device, m, bias):
    parts = operands(m, 256, 128, device, outlier=False)
    if not bias:
        parts[-1] = None
    out = kernels().int8_linear_gelu(*parts)
    assert_quantised_alike(out, naive.int8_linear_gelu(*on_cpu(*parts)))


@DEVICES
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_gelu_of_large_values(triton_form, device):
    """Where the exponential overflows the result is zero, and u itself on the other side."""
    parts = operands(64, 128, 128, device, outlier=False)
    parts[1] *= 1e3
    out = kernels().int8_linear_gelu(*parts)
    assert_quantised_alike(out, naive.int8_linear_gelu(*on_cpu(*parts)))


@KERNEL_CASES
@pytest.mark.parametrize(
    ("b", "length"), [(1, 1), (1, 63), (2, 63), (3, 43), (1, 600), (2, 500)], ids=str
)
@pytest.mark.parametrize("gated", [True, False], ids=["gate", "plain"])
def test_gate_and_residual_in_the_epilogue(triton_form, device, dtype, b, length, gated):
    n = 200
    parts = operands(b * length, n, 128, device)
    residual = randn(b, length, n, dtype=dtype).to(device)
    gate = randn(b, 1, n).to(device) if gated else None
    out = kernels().int8_linear_residual(*parts, residual, gate)
    expected = naive.int8_linear_residual(*on_cpu(*parts, residual, gate))
    assert out.dtype is dtype and out.shape == (b, length, n)
    assert error(out.cpu(), expected) < ROUNDING[dtype]


@DEVICES
@LENGTHS
def test_fp8_product(triton_form, device, m):
    """The interpreter multiplies e4m3 exactly; only its conversion to e4m3 cannot be trusted."""
    if device == "cuda" and not has_fp8(triton_form):
        pytest.skip("the GPU has no e4m3 products")
    parts = *naive.quantize_fp8(randn(m, 384)), *naive.quantize_fp8(randn(200, 384)), randn(200)
    config = Fp8Config() if device == "cpu" else Fp8Config.of(capability(triton_form), m)
    out = kernels().fp8_matmul(*(part.to(device) for part in parts), torch.float32, config)
    expected = (parts[0].float() * parts[1][:, None]) @ (parts[2].float() * parts[3][:, None]).T
    assert error(out.cpu(), expected + parts[4]) < (1e-6 if device == "cpu" else FP8_SUMS)


@pytest.mark.gpu
@LENGTHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_fp8_quantiser_and_linear(triton_form, m, dtype):
    if not has_fp8(triton_form):
        pytest.skip("the GPU has no e4m3 products")
    x, bias = randn(m, 1536, dtype=dtype), randn(200, dtype=dtype)
    weight, scale = naive.quantize_fp8(randn(200, 1536))
    q, scale_x = on_cpu(*kernels().quantize_fp8(x.cuda()))
    q_expected, scale_expected = naive.quantize_fp8(x)
    assert torch.equal(scale_x, scale_expected)
    assert torch.equal(q.float(), q_expected.float())
    out = kernels().fp8_linear(x.cuda(), weight.cuda(), scale.cuda(), bias.cuda())
    assert error(out.cpu(), naive.fp8_linear(x, weight, scale, bias)) < FP8_SUMS
