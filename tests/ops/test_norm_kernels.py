"""The norm kernels against the definition, and what the launch numbers must cover."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.ops.forms import error, form, randn
from tests.ops.interpreter import DEVICES, KERNEL_CASES
from turbodiffusion.errors import UsageError
from turbodiffusion.ops.norm import (
    layer_norm,
    layer_norm_modulate,
    layer_norm_modulate_quantize,
    layer_norm_quantize,
    rms_norm,
)
from turbodiffusion.ops.norm.config import RowConfig, candidates, chunks

EPS = 1e-6
# Exact chunks (16, 128, 384 = 3·128, 1536 = 3·512), idle lanes (1, 63, 1000), rows per program.
WIDTHS = (1, 16, 63, 128, 384, 1000, 1536)
LENGTHS = (1, 63, 129, *(pytest.param(length, marks=pytest.mark.slow) for length in (600, 1000)))
# float32: another order of addition. fp16, bf16: one rounding, at most half a unit in the last
# place of each element.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
NORMS = ("rms", "plain", "affine", "modulated")


def arguments(norm: str, width: int, device: torch.device, batch: int = 2) -> list[Tensor]:
    """What goes with x: weight and bias of a layer, or scale and shift of each sample."""
    shape = (batch, 1, width) if norm == "modulated" else (width,)
    count = {"rms": 1, "plain": 0}.get(norm, 2)
    return [randn(*shape, seed=i).to(device) for i in range(count)]


def apply(norm: str, x: Tensor, vectors: list[Tensor]) -> Tensor:
    if norm == "rms":
        return rms_norm(x, *vectors, EPS)
    if norm == "modulated":
        return layer_norm_modulate(x, *vectors, EPS)
    return layer_norm(x, *vectors, eps=EPS)


def expected(norm: str, x: Tensor, vectors: list[Tensor]) -> Tensor:
    """float64, with the one rounding that the modulated form has inside."""
    z = x.double()
    if norm != "rms":
        z = z - z.mean(-1, keepdim=True)
    z = z / (z.square().mean(-1, keepdim=True) + EPS).sqrt()
    v = [vector.double() for vector in vectors]
    if norm == "rms":
        return z * v[0]
    if norm == "affine":
        return z * v[0] + v[1]
    return z if norm == "plain" else z.to(x.dtype).double() * (1 + v[0]) + v[1]


@pytest.fixture
def few_programs(monkeypatch):
    """So that each program of a backward pass has several rows to walk over."""
    from turbodiffusion.ops.norm import triton

    monkeypatch.setattr(triton, "PROGRAMS", 6)


@KERNEL_CASES
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("norm", NORMS)
def test_width(norm, width, triton_form, device, dtype):
    x = (3 * randn(2, 5, width) + 1).to(triton_form, dtype)
    vectors = arguments(norm, width, triton_form)
    out = apply(norm, x, vectors)
    assert out.dtype is dtype
    assert error(out, expected(norm, x, vectors)) < TOLERANCE[dtype]


@KERNEL_CASES
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("norm", NORMS)
def test_length(norm, length, triton_form, device, dtype):
    x = randn(2, length, 96).to(triton_form, dtype)
    vectors = arguments(norm, 96, triton_form)
    assert error(apply(norm, x, vectors), expected(norm, x, vectors)) < TOLERANCE[dtype]


@KERNEL_CASES
@pytest.mark.parametrize("norm", NORMS)
def test_slices_are_read_in_place(norm, triton_form, device, dtype):
    """The middle third of a joint projection, and the six vectors of a modulation."""
    wide = randn(2, 7, 3 * 384).to(triton_form, dtype)
    x = wide[..., 384:768]
    vectors = arguments(norm, 384, triton_form)
    if norm == "modulated":
        vectors = list(randn(2, 6, 384).to(triton_form).chunk(6, 1)[1:3])
    assert error(apply(norm, x, vectors), expected(norm, x, vectors)) < TOLERANCE[dtype]
    swapped = wide.transpose(0, 1)[..., :384]  # rows without a common distance
    vectors = arguments(norm, 384, triton_form, batch=7)
    assert error(apply(norm, swapped, vectors), expected(norm, swapped, vectors)) < TOLERANCE[dtype]


@KERNEL_CASES
@pytest.mark.parametrize("norm", NORMS)
def test_outliers_and_zeros(norm, triton_form, device, dtype):
    x = randn(1, 9, 384).to(triton_form, dtype)
    x[0, 0] = 0
    x[0, 1, 7] = 6e4  # close to the largest fp16
    x[0, 2] = 1000  # no variance at all
    x[0, 3] *= 1e-7
    vectors = arguments(norm, 384, triton_form, batch=1)
    out, wanted = apply(norm, x, vectors), expected(norm, x, vectors)
    for row in range(9):
        assert error(out[0, row], wanted[0, row]) < TOLERANCE[dtype], row


@DEVICES
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_of_the_weight_does_not_show(weight_dtype, triton_form, device):
    if weight_dtype is torch.bfloat16 and device == "cpu":
        pytest.skip("the interpreter has no bf16")
    x = randn(3, 128).to(triton_form, torch.float16)
    weight = randn(128, dtype=weight_dtype).to(triton_form)
    assert torch.equal(rms_norm(x, weight, EPS), rms_norm(x, weight.float(), EPS))
    out = layer_norm(x, weight, weight)
    assert torch.equal(out, layer_norm(x, weight.float(), weight.float()))


@DEVICES
@pytest.mark.parametrize("shape", [(0, 128), (2, 0, 128), (1, 128), (128,), (2, 3, 2, 128)])
def test_leading_axes(shape, triton_form, device):
    x = randn(*shape).to(triton_form)
    vectors = arguments("affine", 128, triton_form)
    out = apply("affine", x, vectors)
    assert out.shape == shape
    assert error(out, expected("affine", x, vectors)) < 1e-6


@KERNEL_CASES
@pytest.mark.parametrize("shape", [(2, 63, 16), (1, 5, 384), (2, 129, 63), (1, 1, 1000)], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_gradients(norm, shape, triton_form, device, dtype, few_programs):
    """Against autograd through the definition in float32; sums over rows are kept in float32."""
    x = (randn(*shape) + 0.5).to(triton_form, dtype)
    vectors = arguments(norm, shape[-1], triton_form, batch=shape[0])
    upstream = randn(*shape, seed=3).to(triton_form, dtype)
    leaves = [t.requires_grad_() for t in (x, *vectors)]
    actual = torch.autograd.grad(apply(norm, x, vectors), leaves, upstream)
    wide = [t.detach().float().requires_grad_() for t in leaves]
    exact = expected(norm, wide[0], wide[1:])
    for a, b, leaf in zip(
        actual, torch.autograd.grad(exact, wide, upstream.double()), leaves, strict=True
    ):
        assert a.dtype is leaf.dtype and a.shape == leaf.shape
        assert error(a, b) < max(5e-6, TOLERANCE[dtype])


@DEVICES
def test_gradients_are_the_same_every_time(triton_form, device, few_programs):
    x, weight = randn(1, 129, 64).to(triton_form), randn(64).to(triton_form).requires_grad_()
    runs = [
        torch.autograd.grad(rms_norm(x, weight, EPS), weight, torch.ones_like(x))[0]
        for _ in range(2)
    ]
    assert torch.equal(*runs)


@DEVICES
def test_one_scale_for_all_samples(triton_form, device):
    x = randn(3, 5, 64).to(triton_form)
    scale, shift = (randn(1, 1, 64, seed=i).to(triton_form).requires_grad_() for i in range(2))
    out = layer_norm_modulate(x, scale, shift, EPS)
    assert error(out, expected("modulated", x, [scale, shift])) < 1e-6
    gradients = torch.autograd.grad(out, (scale, shift), out.detach())
    wide = expected("modulated", x, [scale, shift])
    for a, b in zip(gradients, torch.autograd.grad(wide, (scale, shift), wide), strict=True):
        assert error(a, b) < 5e-6


@KERNEL_CASES
@pytest.mark.parametrize("width", [128, 384, 1152, 1536])
@pytest.mark.parametrize("norm", ["plain", "affine", "modulated"])
def test_quantised_on_the_way_out(norm, width, triton_form, device, dtype):
    x = randn(2, 9, width).to(triton_form, dtype)
    x[0, 0] = 0
    x[0, 1, 5] = 3e4
    vectors = arguments(norm, width, triton_form)
    quantise = layer_norm_modulate_quantize if norm == "modulated" else layer_norm_quantize
    q, scale = quantise(x, *vectors, eps=EPS)
    assert q.dtype is torch.int8 and q.shape == (18, width)
    assert scale.dtype is torch.float32 and scale.shape == (18, width // 128)
    naive = form("norm", "naive")
    name = f"layer_norm{'_modulate' * (norm == 'modulated')}_quantize"
    given = vectors or [None, None]
    q_wanted, scale_wanted = getattr(naive, name)(x, *given, EPS)
    assert error(scale, scale_wanted) < 1e-6
    steps = (q.int() - q_wanted.int()).abs()  # values next to a tie may go either way
    assert steps.max() <= 1 and steps.float().mean() < 1e-3


@pytest.mark.parametrize("backend", ["naive", "portable"])
@pytest.mark.parametrize("norm", ["plain", "affine", "modulated"])
def test_quantised_norms_round_once(norm, backend, monkeypatch):
    """The group quantiser applied to the norm in float32, also for a bf16 input."""
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)
    x = randn(1, 63, 256, dtype=torch.bfloat16)
    vectors = arguments(norm, 256, torch.device("cpu"), batch=1)
    quantise = layer_norm_modulate_quantize if norm == "modulated" else layer_norm_quantize
    q, scale = quantise(x, *vectors, eps=EPS)
    wanted = expected(norm, x.float(), vectors)[0].unflatten(-1, (2, 128))
    assert error(scale, wanted.abs().amax(-1) / 127) < 1e-6
    steps = q.unflatten(-1, (2, 128)) * scale.unsqueeze(-1)
    # Half a step everywhere; float32 in the last place near a tie.
    assert ((steps - wanted).abs() <= 0.5001 * scale.unsqueeze(-1)).all()


@pytest.mark.parametrize("backend", ["naive", "portable", "triton"])
def test_quantised_widths_are_whole_groups(backend, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)
    with pytest.raises(UsageError, match="Rows of 96"):
        layer_norm_quantize(randn(2, 96))


def test_chunks_cover_a_row_without_waste():
    assert chunks(1536) == (512, 3) and chunks(5120) == (1024, 5)
    for width in range(1, 6000):
        chunk, count = chunks(width)
        assert chunk & (chunk - 1) == 0
        assert width <= chunk * count < 2 * width
        assert chunk * count == width or count == 1


@pytest.mark.parametrize("width", [1536, 5120])
def test_every_candidate_covers_the_row(width):
    found = candidates(90, width)
    assert RowConfig.forward(width, 2) in found and len(found) == len(set(found)) > 4
    assert all(width <= c.chunk * c.count < 2 * width for c in found)
    assert {c.count for c in found} >= {1, chunks(width)[1]}  # filled up, and cut exactly


@DEVICES
@pytest.mark.parametrize("config", candidates(90, 1536), ids=str)
def test_candidates_compute_the_same(config, triton_form, device):
    from turbodiffusion.ops.norm import triton

    x = randn(1, 9, 1536).to(triton_form)
    vectors = arguments("modulated", 1536, triton_form, batch=1)
    q, scale = triton.quantized(x, *vectors, EPS, triton.MODULATED, config)
    wanted = form("norm", "naive").layer_norm_modulate_quantize(x, *vectors, EPS)
    assert error(scale, wanted.scale) < 1e-6
    assert (q.int() - wanted.q.int()).abs().max() <= 1
    out = torch.empty_like(x)
    triton.launch(x, *vectors, EPS, triton.MODULATED, out, None, config)
    assert error(out, expected("modulated", x, vectors)) < 1e-6


@pytest.mark.parametrize(
    ("width", "forward", "quantising"), [(128, 4, 4), (1536, 1, 2), (5120, 4, 4)]
)
def test_quantised_rows_take_no_fewer_warps(width, forward, quantising):
    """Rows of 1.3B are shared by two, those of 14B by four as before, whatever their dtype."""
    assert RowConfig.forward(width, 2).num_warps == forward
    assert RowConfig.quantising(width, 2).num_warps == quantising
    for itemsize in (2, 4):
        plain, quantised = (
            getattr(RowConfig, name)(width, itemsize) for name in ("forward", "quantising")
        )
        assert quantised == replace(plain, num_warps=max(plain.num_warps, quantising))
