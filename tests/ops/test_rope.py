"""Rotary embedding: golden frequencies, the rotation itself, and its invariants."""

from __future__ import annotations

import math

import pytest
import torch

from tests.ops.forms import DTYPES, TOLERANCE, error, randn
from turbodiffusion.errors import UsageError
from turbodiffusion.ops.rope import apply_rope, inverse_frequencies, rope_table

SPLIT = (44, 42, 42)  # of a head of 128
GRIDS = [(1, 1, 1), (3, 7, 3), (1, 3, 43), (5, 10, 12)]


@pytest.fixture(params=["naive", "portable"], autouse=True)
def forced(request, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", request.param)


def test_inverse_frequencies_of_the_released_heads():
    time, side = inverse_frequencies(44), inverse_frequencies(42)
    assert time[:3].tolist() == pytest.approx([1, 0.65793324, 0.43287614], rel=1e-7)
    assert time[-1].item() == pytest.approx(1.5199113e-4, rel=1e-6)
    assert side[:3].tolist() == pytest.approx([1, 0.64494669, 0.4159562], rel=1e-7)
    assert side[-1].item() == pytest.approx(1.5505157e-4, rel=1e-6)
    assert len(time) == 22 and len(side) == 21


def test_table_orders_tokens_and_axes():
    t, h, w = 3, 4, 5
    cos, sin = rope_table((t, h, w), SPLIT)
    assert cos.shape == sin.shape == (t * h * w, 64) and cos.dtype is torch.float32
    place = (2, 1, 3)
    token = (place[0] * h + place[1]) * w + place[2]
    angle = [
        p * 10000 ** (-2 * j / d) for p, d in zip(place, SPLIT, strict=True) for j in range(d // 2)
    ]
    assert cos[token].tolist() == pytest.approx([math.cos(a) for a in angle], abs=1e-6)
    assert sin[token].tolist() == pytest.approx([math.sin(a) for a in angle], abs=1e-6)
    assert cos[0].eq(1).all() and sin[0].eq(0).all()


def test_float32_angles_stay_close_to_float64():
    grid = (21, 30, 52)
    cos, sin = rope_table(grid, SPLIT)
    angle = torch.cat(
        [
            torch.outer(torch.arange(n).double(), 10000 ** (-torch.arange(0, d, 2).double() / d))
            .view(*(n if i == j else 1 for j in range(3)), -1)
            .expand(*grid, -1)
            for i, (n, d) in enumerate(zip(grid, SPLIT, strict=True))
        ],
        dim=-1,
    ).flatten(0, 2)
    wrapped = torch.remainder(torch.atan2(sin, cos) - angle + math.pi, 2 * math.pi) - math.pi
    assert wrapped.abs().max() < 4e-6


@DTYPES
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_pairs_turn_as_complex_numbers(grid, dtype):
    x = randn(2, math.prod(grid), 3, 128, dtype=dtype)
    cos, sin = rope_table(grid, SPLIT)
    z = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    expected = torch.view_as_real(z * torch.complex(cos, sin)[:, None]).flatten(-2)
    out = apply_rope(x, (cos, sin))
    assert out.dtype is dtype
    assert error(out, expected) < TOLERANCE[dtype]
    assert torch.equal(out, apply_rope(x.float(), (cos, sin)).to(dtype))  # one rounding


def test_scores_depend_on_distance_only():
    grid, split = (9, 1, 1), (8, 0, 0)
    table = rope_table(grid, split)
    q, k = (randn(1, 1, 1, 8, seed=i).expand(1, 9, 1, 8) for i in range(2))
    score = apply_rope(q, table)[0, :, 0] @ apply_rope(k, table)[0, :, 0].T
    for distance in range(-4, 5):
        diagonal = score.diagonal(distance)
        assert (diagonal - diagonal[0]).abs().max() < 1e-5


def test_gradient_turns_back():
    table = rope_table((1, 9, 7), SPLIT)
    x = randn(1, 63, 2, 128).requires_grad_()
    out = apply_rope(x, table)
    (gradient,) = torch.autograd.grad(out, x, out.detach())
    assert error(gradient, x) < 1e-6  # the rotation is orthogonal


def test_a_table_of_another_size_is_refused():
    with pytest.raises(UsageError, match=r"\(8, 64\), but 9 tokens"):
        apply_rope(randn(1, 9, 1, 128), rope_table((2, 2, 2), SPLIT))
