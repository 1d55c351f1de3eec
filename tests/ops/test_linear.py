"""Linears and the int8 quantiser: examples by hand, the definition, and both forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.forms import DTYPES, FORMS, LENGTHS, TOLERANCE, error, form, randn
from turbodiffusion.errors import UsageError
from turbodiffusion.ops import backend
from turbodiffusion.ops.linear import (
    Quantized,
    dequantize_weight,
    fp8_linear,
    has_int8,
    int8_linear,
    int8_linear_gelu,
    int8_linear_residual,
    int8_matmul,
    linear,
    quantize_fp8,
    quantize_group,
    quantize_tile,
    quantize_weight,
)

naive, portable = form("linear", "naive"), form("linear", "portable")
ACTIVATIONS = pytest.mark.parametrize("activation", ["tile", "group"])


@DTYPES
@pytest.mark.parametrize("length", LENGTHS)
def test_plain_linear(length, dtype):
    x, weight, bias = (
        randn(2, length, 48, dtype=dtype), randn(40, 48, dtype=dtype), randn(40, dtype=dtype),
    )  # fmt: skip
    expected = x.double() @ weight.double().T + bias.double()
    for module in (naive, portable):
        out = module.linear(x, weight, bias)
        assert out.dtype is dtype
        assert error(out, expected) < TOLERANCE[dtype]
    assert error(linear(x, weight), expected - bias.double()) < TOLERANCE[dtype]


@FORMS
def test_quantiser_by_hand(backend):
    x = torch.zeros(1, 128)
    x[0, :7] = torch.tensor([1.0, -1.0, 0.5, 1.5 / 128, 0.5 / 128, 127.5 / 128, -2.5 / 128])
    q, scale = form("linear", backend).quantize_tile(x)
    assert q[0, :7].tolist() == [127, -128, 64, 2, 0, 127, -2]  # ties go to even, +1 saturates
    assert scale.tolist() == [[1 / 128]]
    q, scale = form("linear", backend).quantize_group(127 * x)
    assert q[0, :3].tolist() == [127, -127, 64]
    assert scale.tolist() == [[1.0]]


@FORMS
def test_zeros_give_the_floor(backend):
    q, scale = form("linear", backend).quantize_tile(torch.zeros(3, 256))
    assert q.eq(0).all() and scale.shape == (1, 2)
    assert scale.eq(torch.tensor(1e-8) / 128).all()


@DTYPES
@pytest.mark.parametrize("m", LENGTHS)
@pytest.mark.parametrize("k", [1, 128, 200])
def test_quantiser_forms_are_equal(m, k, dtype):
    x = randn(m, k, dtype=dtype)
    x[0, 0] = 40.0
    for name in ("quantize_tile", "quantize_group"):
        (q, scale), (q_naive, scale_naive) = (getattr(f, name)(x) for f in (portable, naive))
        assert torch.equal(scale, scale_naive) and torch.equal(q, q_naive)
        assert q.shape == x.shape and q.dtype is torch.int8


def test_blocks_have_their_own_scale_and_borders_count_as_zero():
    x = torch.ones(129, 256)
    x[:128, 128:], x[128:, :128], x[128:, 128:] = 2, 3, 4
    _, scale = quantize_tile(x)
    assert (scale * 128).tolist() == [[1, 2], [3, 4]]
    _, scale = quantize_group(x)
    assert scale.shape == (129, 2)


def test_round_trip_error_is_half_a_step():
    weight = randn(200, 384)
    q, scale = quantize_weight(weight)
    restored = dequantize_weight(q, scale)
    step = scale.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)
    excess = (restored - weight).abs() / step
    assert excess[q != 127].max() <= 0.5001
    assert excess.max() <= 1.0001  # where the largest positive element saturated
    again, scale_again = quantize_weight(restored)
    assert (again.int() - q.int()).abs().max() <= 1 and error(scale_again, scale) < 1e-2


@ACTIVATIONS
@DTYPES
@pytest.mark.parametrize("length", LENGTHS)
def test_int8_products_agree(length, activation, dtype):
    x, bias = randn(2 * length, 256, dtype=dtype), randn(200, dtype=dtype)
    q, scale = quantize_weight(randn(200, 256))
    operands = *getattr(naive, f"quantize_{activation}")(x), q, scale, bias
    expected = naive.int8_matmul(*operands, dtype, activation == "tile")
    out = portable.int8_matmul(*operands, dtype, activation == "tile")
    assert out.dtype is dtype and out.shape == (2 * length, 200)
    assert error(out, expected) < (1e-6 if dtype is torch.float32 else 1e-3)


def exact(x_MK: Tensor, rows: int, q_NK: Tensor, scale: Tensor) -> Tensor:
    """The product of the quantised operands in float64, written apart from the forms."""
    q_x, scale_x = (quantize_tile if rows == 128 else quantize_group)(x_MK)
    spread = scale_x.double().repeat_interleave(rows, 0)[: len(x_MK)].repeat_interleave(128, 1)
    return (q_x.double() * spread) @ dequantize_weight(q_NK, scale, torch.float64).T


@FORMS
@pytest.mark.parametrize(("activation", "rows"), [("tile", 128), ("group", 1)])
def test_product_is_exact_and_bias_is_rounded_as_released(backend, activation, rows):
    x = randn(129, 1536, dtype=torch.bfloat16)
    q, scale = quantize_weight(randn(72, 1536, dtype=torch.bfloat16))
    expected = exact(x, rows, q, scale)
    released = activation == "tile"
    operands = *(quantize_tile if released else quantize_group)(x), q, scale
    product = form("linear", backend).int8_matmul
    assert error(product(*operands, None, torch.float32, released), expected) < 1e-6
    bias = 0.1 * randn(72, dtype=torch.bfloat16)
    twice = expected.bfloat16() + bias
    once = (expected + bias.double()).bfloat16()
    wanted, other = (twice, once) if released else (once, twice)
    out = product(*operands, bias, torch.bfloat16, released)
    assert (out != wanted).float().mean() < 2e-3 < (out != other).float().mean()


@ACTIVATIONS
def test_int8_linear_is_close_to_the_linear_it_replaces(activation):
    x, weight, bias = randn(2, 300, 512), randn(384, 512), randn(384)
    out = int8_linear(x, *quantize_weight(weight), bias, activation=activation)
    assert error(out, x @ weight.T + bias) < 0.016


def test_groups_keep_small_rows_and_outliers():
    """The figures of the granularity table: rows of unequal size, one loud channel."""
    weight = randn(256, 512)
    parts = quantize_weight(weight)
    rows = randn(512, 512) * torch.exp(2 * randn(512, 1))
    loud = randn(512, 512)
    loud[:, 3] *= 30
    for x, bound in ((rows, 0.016), (loud, 0.03)):
        tile, group = (
            error(int8_linear(x, *parts, activation=a), x @ weight.T) for a in ("tile", "group")
        )
        assert group < bound and group < 0.6 * tile


def test_tiles_cross_samples_as_released():
    """Leading axes are flattened: a loud second sample coarsens the first one's scale."""
    x = randn(2, 64, 128)
    x[1] *= 100
    parts = quantize_weight(randn(128, 128))
    joined, alone = (int8_linear(y, *parts, activation="tile")[0] for y in (x, x[:1]))
    assert error(joined, alone) > 0.05
    grouped = int8_linear(x, *parts)[0]
    assert torch.allclose(grouped, int8_linear(x[:1], *parts)[0], rtol=1e-5)


@ACTIVATIONS
def test_zero_input_gives_the_bias(activation):
    bias = randn(128)
    parts = quantize_weight(randn(128, 128))
    out = int8_linear(torch.zeros(3, 128), *parts, bias, activation=activation)
    assert torch.equal(out, bias.expand(3, 128))


FUSED_LENGTHS = pytest.mark.parametrize("length", [1, 63, 129, 600, 1000])


def assert_quantised_alike(out: Quantized, expected: Quantized):
    """Equal, but for one step where a value lies on a tie and for an ulp of the scale."""
    torch.testing.assert_close(out.scale, expected.scale, rtol=1e-6, atol=0)
    step = (out.q.int() - expected.q.int()).abs()
    assert step.max() <= 1 and (step > 0).float().mean() < 1e-3


@FUSED_LENGTHS
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "bare"])
def test_gelu_and_quantiser_forms_agree(length, with_bias):
    x, bias = quantize_group(randn(length, 256)), randn(384) if with_bias else None
    parts = quantize_weight(randn(384, 256) / 16)
    expected = Quantized(*naive.int8_linear_gelu(*x, *parts, bias))
    assert_quantised_alike(Quantized(*portable.int8_linear_gelu(*x, *parts, bias)), expected)
    y = F.gelu(int8_matmul(x, *parts, bias, torch.float32), approximate="tanh")
    assert_quantised_alike(int8_linear_gelu(x, *parts, bias), quantize_group(y))


@DTYPES
@FUSED_LENGTHS
@pytest.mark.parametrize("gated", [True, False], ids=["gate", "plain"])
def test_gate_and_residual_forms_agree(length, dtype, gated):
    x, bias = quantize_group(randn(2 * length, 256)), randn(200)
    parts = quantize_weight(randn(200, 256) / 16)
    residual, gate = randn(2, length, 200, dtype=dtype), randn(2, 1, 200) if gated else None
    expected = naive.int8_linear_residual(*x, *parts, bias, residual, gate)
    kept = residual.clone()
    out = portable.int8_linear_residual(*x, *parts, bias, residual, gate)
    assert out.dtype is dtype and torch.equal(residual, kept)
    assert error(out, expected) < (1e-6 if dtype is torch.float32 else 1e-3)
    y = int8_matmul(x, *parts, bias, torch.float32).view(2, length, 200)
    once = (residual.float() + (y * gate if gated else y)).to(dtype)
    assert error(int8_linear_residual(x, *parts, bias, residual, gate), once) < 1e-3


def test_fused_linears_quantise_what_is_not_yet():
    x, bias, parts = randn(2, 63, 256), randn(128), quantize_weight(randn(128, 256))
    made = quantize_group(x.view(126, 256))
    assert isinstance(made, Quantized)
    assert torch.equal(int8_matmul(x, *parts, bias), int8_matmul(made, *parts, bias))
    assert int8_matmul(x, *parts).dtype is torch.bfloat16
    for out, same in zip(
        int8_linear_gelu(x, *parts, bias), int8_linear_gelu(made, *parts, bias), strict=True
    ):
        assert torch.equal(out, same)
    residual = randn(2, 63, 128)
    out = int8_linear_residual(x, *parts, bias, residual)
    assert torch.equal(out, int8_linear_residual(made, *parts, bias, residual))
    assert torch.allclose(out - residual, int8_linear(x, *parts, bias), atol=1e-4)


def test_int8_matmul_takes_both_granularities():
    x, parts = randn(129, 256), quantize_weight(randn(72, 256))
    for quantise, rows in ((quantize_group, 1), (quantize_tile, 128)):
        out = int8_matmul(Quantized(*quantise(x)), *parts, dtype=torch.float32)
        assert error(out, exact(x, rows, *parts)) < 1e-6


@pytest.mark.parametrize("m", LENGTHS)
def test_fp8_forms_agree(m):
    x, bias = randn(m, 256), randn(72)
    x[0] *= 1000
    x[-1] = 0
    for made, expected in zip(portable.quantize_fp8(x), naive.quantize_fp8(x), strict=True):
        assert torch.equal(made.float(), expected.float())
    weight, scale = naive.quantize_fp8(randn(72, 256))
    assert weight.dtype is torch.float8_e4m3fn and scale.shape == (72,)
    expected = naive.fp8_linear(x, weight, scale, bias)
    assert error(portable.fp8_linear(x, weight, scale, bias), expected) < 1e-6
    assert torch.equal(expected[-1], bias)


def test_fp8_linear_is_close_to_the_linear_it_replaces():
    """e4m3 keeps 3 bits after the point: half a step is 2^-4, and either operand contributes."""
    x, weight, bias = randn(2, 300, 512), randn(384, 512), randn(384)
    x[0, 0] *= 1000  # each row has its own scale
    q, scale = quantize_fp8(weight)
    assert (q.float().abs().amax(1) == 448).all()
    for dtype in (torch.float32, torch.bfloat16):
        out = fp8_linear(x.to(dtype), q, scale, bias)
        assert out.shape == (2, 300, 384) and out.dtype is dtype
        assert error(out[1], (x @ weight.T + bias)[1]) < 0.04


def test_int8_serves_as_storage_only_on_a_cpu_left_to_itself(monkeypatch):
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    assert not has_int8(torch.device("cpu"))
    for name in ("naive", "portable"):
        monkeypatch.setenv(backend.VARIABLE, name)
        assert has_int8(torch.device("cpu"))


def test_errors():
    q, scale = quantize_weight(randn(128, 256))
    with pytest.raises(UsageError, match="multiple of 128"):
        quantize_weight(randn(128, 200))
    with pytest.raises(UsageError, match=r"\(…, 128\)"):
        int8_linear(randn(3, 128), q, scale)
    with pytest.raises(UsageError, match=r"\(1, 1\)"):
        int8_linear(randn(3, 256), q, scale[:, :1])
    with pytest.raises(UsageError, match="'row'"):
        int8_linear(randn(3, 256), q, scale, activation="row")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="72 outputs"):
        int8_linear_gelu(randn(3, 256), *quantize_weight(randn(72, 256)))
    with pytest.raises(UsageError, match=r"\(…, 128\)"):
        int8_matmul(quantize_group(randn(3, 128)), q, scale)
    residual = randn(1, 3, 128)
    for wrong in ((residual[:, :2], None), (residual, randn(2, 1, 128))):
        with pytest.raises(UsageError, match="makes 3 × 128"):
            int8_linear_residual(randn(3, 256), q, scale, None, *wrong)
    with pytest.raises(UsageError, match=r"\(128,\)"):
        fp8_linear(randn(3, 256), *quantize_fp8(randn(128, 128)))
