"""8-bit attention: the forms against each other, against exact attention, and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.ops.forms import FORMS, LENGTHS, error, form, randn
from turbodiffusion.errors import UsageError
from turbodiffusion.ops.attention.merge import merge
from turbodiffusion.ops.attention.naive import attention as exact_attention
from turbodiffusion.ops.sage import sage_attention, sage_sparse_linear_attention
from turbodiffusion.ops.sage.config import default_product
from turbodiffusion.ops.sage.naive import E4M3_OFFSET, quantise, quantise_values
from turbodiffusion.ops.sla import select_blocks
from turbodiffusion.ops.sla.naive import sparse_linear_attention as exact_sla

D = 32
GEOMETRY = {"topk": 0.3, "block_q": 32, "block_k": 16}
PV = pytest.mark.parametrize("pv", ["fp16", "bf16", "fp8"])
ZERO = torch.zeros(D, D), torch.zeros(D)


def qkv(length: int, keys: int | None = None, width: int = D) -> list[Tensor]:
    shapes = (length, keys or length, keys or length)
    return [randn(2, n, 2, width, seed=i) for i, n in enumerate(shapes)]


def accuracy(actual: Tensor, expected: Tensor) -> tuple[float, float]:
    """Cosine and relative L1, as the accuracy of 8-bit attention is stated."""
    a, e = actual.double().flatten(), expected.double().flatten()
    return (a @ e / (a.norm() * e.norm())).item(), ((a - e).abs().sum() / e.abs().sum()).item()


@PV
@pytest.mark.parametrize("keys", [1, 77, 300])
def test_dense_forms_agree(keys, pv):
    inputs = qkv(129, keys)
    (naive, naive_lse), (portable, lse) = (
        form("sage", name).sage_attention(*inputs, True, pv) for name in ("naive", "portable")
    )
    assert error(portable, naive) < 1e-4
    assert error(lse, naive_lse) < 1e-6


@PV
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("feature_map", ["softmax", "elu", "relu"])
def test_sparse_forms_agree(length, feature_map, pv, monkeypatch):
    inputs = *qkv(length), randn(D, D), randn(D)
    outs = []
    for backend in ("naive", "portable"):
        monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)
        outs.append(
            sage_sparse_linear_attention(*inputs, **GEOMETRY, feature_map=feature_map, pv=pv)
        )
    assert error(outs[1], outs[0]) < 1e-4


@FORMS
@PV
def test_close_to_exact_attention_on_the_same_map(backend, pv, monkeypatch):
    """Section 9 of the operator definitions: cosine > 0.999, relative L1 < 0.05."""
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)
    q, k, v = (x.bfloat16() for x in qkv(600, width=64))
    k = k + 5 * randn(1, 1, 2, 64, seed=9).bfloat16()  # a mean that smoothing must take off
    projection = randn(64, 64) / 8, randn(64)
    geometry = {"block_q": 128, "block_k": 64, "feature_map": "softmax"}
    blocks = select_blocks(q, k, topk=0.5, block_q=128, block_k=64)
    out = sage_sparse_linear_attention(q, k, v, *projection, topk=0.5, **geometry, pv=pv)
    exact = exact_sla(q.float(), k.float(), v.float(), *projection, blocks, **geometry)
    cosine, distance = accuracy(out, exact)
    assert out.dtype is torch.bfloat16 and cosine > 0.999 and distance < 0.05
    dense = sage_attention(q, k, v, pv=pv)
    cosine, distance = accuracy(dense, exact_attention(q.float(), k.float(), v.float()))
    assert cosine > 0.999 and distance < (0.05 if pv == "fp8" else 0.02)


def test_smoothing_is_what_makes_a_common_key_harmless():
    q, k, v = qkv(129)
    k = k + 30 * randn(1, 1, 2, D, seed=9)
    exact = exact_attention(q, k, v)
    with_it, without = (
        accuracy(sage_attention(q, k, v, smooth_k=smooth, pv="fp16"), exact)[1]
        for smooth in (True, False)
    )
    assert with_it < 0.02 < without


@FORMS
@PV
@pytest.mark.parametrize("smooth_k", [True, False])
def test_lse_is_that_of_the_true_scores(backend, pv, smooth_k, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)
    q, k, v = qkv(63, 130)
    if smooth_k:  # otherwise a common key costs the integers their digits
        k = k + randn(1, 1, 2, D, seed=9)
    _, lse = sage_attention(q, k, v, smooth_k=smooth_k, pv=pv, return_lse=True)
    scores = torch.einsum("blnd,bsnd->bnls", q, k) * D**-0.5
    assert (lse * math.log(2) - scores.logsumexp(-1)).abs().max() < 0.02


@FORMS
def test_parts_of_the_keys_merge(backend, monkeypatch):
    """Smoothed by the mean of each part, joined by the LSE of the true scores."""
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)
    q, k, v = qkv(63, 200)
    parts = [
        sage_attention(q, k[:, a:b], v[:, a:b], pv="bf16", return_lse=True)
        for a, b in ((0, 128), (128, 200))
    ]
    out, _ = merge(*zip(*parts, strict=True))
    assert accuracy(out, exact_attention(q, k, v))[1] < 0.03


@FORMS
@PV
@pytest.mark.parametrize("length", [1, 63, 129])
def test_all_blocks_is_dense(backend, length, pv, monkeypatch):
    """Equal but for the rescaling of rounded numbers, as blocks are cut differently."""
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)
    q, k, v = qkv(length)
    geometry = {"topk": 1.0, "block_q": 128, "block_k": 64, "feature_map": "softmax"}
    sparse = sage_sparse_linear_attention(q, k, v, *ZERO, **geometry, pv=pv)
    assert error(sparse, sage_attention(q, k, v, pv=pv)) < 1e-6


@FORMS
@PV
def test_zero_channels_and_outliers(backend, pv, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)
    q, k, v = qkv(129)
    v[..., 3] = 0
    out = sage_attention(q, k, v, pv=pv)
    assert out.isfinite().all() and (out[..., 3] == 0).all()
    q[:, 5], k[:, 100], v[:, 7] = 1000, -1000, 300
    out = sage_sparse_linear_attention(q, k, v, *ZERO, **GEOMETRY, feature_map="softmax", pv=pv)
    assert out.isfinite().all()
    nothing = sage_attention(q, torch.zeros_like(k), v, pv=pv)
    assert error(nothing, v.mean(1, keepdim=True).expand_as(v)) < 0.05


def test_one_block_takes_no_other(monkeypatch):
    """A list of one block is attention to its keys alone; the rest may hold anything finite."""
    q, k, v = qkv(96)
    blocks = torch.full((2, 2, 3, 1), 2)
    for backend in ("naive", "portable"):
        monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)
        first = sage_sparse_linear_attention(
            q, k, v, *ZERO, **GEOMETRY, feature_map="elu", blocks=blocks, pv="fp16"
        )
        other = v.clone()
        other[:, :32], other[:, 48:] = 7, -7
        second = sage_sparse_linear_attention(
            q, k, other, *ZERO, **GEOMETRY, feature_map="elu", blocks=blocks, pv="fp16"
        )
        assert torch.equal(first, second)


def test_small_pieces_give_the_same_result(monkeypatch):
    inputs = *qkv(600), randn(D, D), randn(D)
    rest = {**GEOMETRY, "feature_map": "softmax", "pv": "fp8"}
    whole = sage_sparse_linear_attention(*inputs, **rest)
    monkeypatch.setattr(form("sage", "portable"), "SCORES_AT_A_TIME", 7 * 32 * 16)
    assert error(sage_sparse_linear_attention(*inputs, **rest), whole) < 1e-6


def test_quantiser_rounds_halves_away_from_zero():
    x = torch.tensor([127.0, 0.5, -0.5, 1.5, -126.5, 0.4]).view(1, 6, 1, 1)
    q, scale = quantise(x, 6)
    assert q.flatten().tolist() == [127, 1, -1, 2, -127, 0] or scale.item() > 1
    assert scale.item() == pytest.approx(1 + 1e-7) and q.abs().max() <= 127
    zero, scale = quantise(torch.zeros(1, 6, 1, 1), 4)
    assert (zero == 0).all() and (scale > 0).all() and scale.shape == (1, 1, 2)


def test_values_in_e4m3_span_the_range_of_their_channel():
    v, scale = quantise_values(torch.tensor([[9.0, 0.0], [-4.5, 0.0]])[None, :, None], "fp8")
    assert v[0, 0].tolist() == [[2.25, 0.0], [-1.125, 0.0]]
    assert scale[0, 0, 0, 0] == 4 and scale[0, 0, 0, 1] > 0


def test_format_by_capability():
    chosen = {c: default_product(c) for c in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))}
    assert list(chosen.values()) == ["fp16", "fp16", "fp8", "fp8", "fp8", "fp8"]


def test_errors():
    q, k, v = qkv(63)
    rest = {**GEOMETRY, "feature_map": "softmax"}
    with pytest.raises(UsageError, match="must be equal"):
        sage_sparse_linear_attention(q, k[:, :5], v, *ZERO, **rest)
    with pytest.raises(UsageError, match="k and v must be alike"):
        sage_attention(q, k[:, :5], v)
    with pytest.raises(UsageError, match="'gelu'"):
        sage_sparse_linear_attention(q, k, v, *ZERO, **{**rest, "feature_map": "gelu"})
    for bad in ({"topk": 0.0}, {"topk": 1.5}, {"block_q": 0}):
        with pytest.raises(UsageError, match="topk"):
            sage_sparse_linear_attention(q, k, v, *ZERO, **{**rest, **bad})
    with pytest.raises(UsageError, match="'int4'"):
        sage_attention(q, k, v, pv="int4")


def test_a_wanted_gradient_is_an_error():
    q, k, v = qkv(63)
    weight = torch.zeros(D, D, requires_grad=True)
    with pytest.raises(UsageError, match="Train with attention 'sla'") as caught:
        sage_sparse_linear_attention(
            q, k, v, weight, torch.zeros(D), **GEOMETRY, feature_map="softmax"
        )
    assert caught.value.code == "ops-sage-gradient"
    with torch.no_grad():
        sage_attention(q.requires_grad_(), k, v)


@pytest.mark.parametrize("backend", ["naive", "portable"])
def test_the_last_block_is_first_to_set_the_range_of_e4m3(backend):
    """By hand: 64 keys whose score lies 1.3 powers of two below that of a last one. In another
    order they would set the range themselves, and be exact."""
    a = 1.3 / (math.sqrt(D) * math.log2(math.e))
    q, k, v = torch.ones(1, 1, 1, D), torch.ones(1, 65, 1, D), torch.ones(1, 65, 1, D)
    k[:, :64], v[:, 64] = 1 - a, 0.0
    out, _ = form("sage", backend).sage_attention(q, k, v, False, "fp8")
    p = 2 ** (E4M3_OFFSET - 1.3)  # 181.9, where e4m3 has 176 and 192
    expected = 64 * 176 / (64 * p + 2**E4M3_OFFSET)
    torch.testing.assert_close(out, torch.full_like(out, expected), rtol=2e-4, atol=0)
