"""SLA: the gathered form against the masked definition, and its limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.forms import DTYPES, FORMS, LENGTHS, error, form, randn
from turbodiffusion.errors import UsageError
from turbodiffusion.ops.attention import attention
from turbodiffusion.ops.sla import block_map, on_cpu, select_blocks, sparse_linear_attention
from turbodiffusion.ops.sla.cut import Cut

D = 16
GEOMETRY = {"topk": 0.3, "block_q": 32, "block_k": 16}
ZERO = torch.zeros(D, D), torch.zeros(D)


def qkv(length: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [randn(2, length, 3, D, dtype=dtype, seed=i) for i in range(3)]


def projection() -> tuple[Tensor, Tensor]:
    return randn(D, D), randn(D)


@DTYPES
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("feature_map", ["softmax", "elu", "relu"])
def test_forms_agree_in_values_and_gradients(length, feature_map, dtype, monkeypatch):
    inputs = [*qkv(length, dtype), *projection()]
    results = []
    for backend in ("naive", "portable"):
        monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = sparse_linear_attention(*leaves, **GEOMETRY, feature_map=feature_map)
        assert out.dtype is dtype and out.shape == inputs[0].shape
        gradients = torch.autograd.grad(out, leaves, randn(*out.shape, dtype=dtype))
        results.append([out, *gradients])
    for name, b, a in zip(("out", "q", "k", "v", "W", "b"), *results, strict=True):
        tolerance = 1e-5 if dtype is torch.float32 else 1e-2
        if length == 1 and name in "qk":
            # With one key these gradients are what is left of terms of order 1 that cancel.
            assert (a - b).abs().max() < tolerance, name
        else:
            assert error(a, b) < tolerance, name


@FORMS
def test_scores_agree_with_the_definition(backend):
    q, k, _ = qkv(129)
    smooth = k - k.mean(1, keepdim=True)
    expected = torch.stack(
        [
            torch.stack([(a.mean(1) * b.mean(1)).sum(-1) for b in smooth.split(16, 1)], -1)
            for a in q.split(32, 1)
        ],
        dim=-2,
    )
    assert error(form("sla", backend).block_scores(q, k, 32, 16), expected) < 1e-5


@pytest.mark.parametrize("length", LENGTHS)
def test_map_keeps_the_share_and_matches_between_forms(length, monkeypatch):
    maps = []
    for backend in ("naive", "portable"):
        monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)
        maps.append(block_map(*qkv(length)[:2], **GEOMETRY))
    assert torch.equal(*maps)
    blocks = -(-length // 16)
    assert maps[0].shape == (2, 3, -(-length // 32), blocks)
    assert maps[0].sum(-1).eq(max(1, int(0.3 * blocks))).all()


def test_ties_go_to_the_lower_block():
    q, k = torch.ones(1, 64, 1, D), torch.ones(1, 64, 1, D)  # smoothed keys are all zero
    chosen = select_blocks(q, k, topk=0.5, block_q=32, block_k=16)
    assert chosen.tolist() == [[[[0, 1], [0, 1]]]]


def test_a_constant_on_every_key_changes_no_choice():
    q, k, _ = qkv(600)
    offset = 20 * randn(1, 1, 3, D)
    assert torch.equal(block_map(q, k, **GEOMETRY), block_map(q, k + offset, **GEOMETRY))


@FORMS
@pytest.mark.parametrize("length", LENGTHS)
def test_all_blocks_and_no_projection_is_dense_attention(backend, length, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)
    q, k, v = qkv(length)
    out = sparse_linear_attention(
        q, k, v, *ZERO, topk=1.0, block_q=32, block_k=16, feature_map="softmax"
    )
    assert error(out, attention(q, k, v)) < 1e-6


def test_unselected_values_never_reach_the_sparse_branch():
    """Poison: the values of every block that a query block did not choose are NaN."""
    q, k, v = (x[:1, :, :1] for x in qkv(96))
    chosen = torch.tensor([[[[1, 3]] * 3]])
    v[:, :16] = v[:, 32:48] = v[:, 64:] = float("nan")
    cut = Cut.of(chosen, None, 32, 16, 96)
    assert form("sla", "portable")._sparse(q, k, v, cut).isfinite().all()


@FORMS
def test_linear_branch_sees_all_keys(backend, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)
    q, k, v = qkv(63)
    weight, bias = torch.eye(D), torch.zeros(D)
    rest = {**GEOMETRY, "feature_map": "softmax"}
    linear = sparse_linear_attention(q, k, v, weight, bias, **rest) - sparse_linear_attention(
        q, k, v, *ZERO, **rest
    )
    phi_q, phi_k = (x.double().softmax(-1).transpose(1, 2) for x in (q, k))
    weights = phi_q @ phi_k.mT
    expected = (weights / (1e-5 + weights.sum(-1, keepdim=True))) @ v.double().transpose(1, 2)
    assert error(linear.transpose(1, 2), expected) < 1e-5


@FORMS
@DTYPES
def test_zero_values_and_outliers(backend, dtype, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)
    q, k, v = qkv(129, dtype)
    out = sparse_linear_attention(
        q, k, torch.zeros_like(v), *projection(), **GEOMETRY, feature_map="elu"
    )
    torch.testing.assert_close(out, randn(D).to(dtype).expand_as(out))  # the bias alone
    q[:, 5], k[:, 100] = 1000, -1000
    out = sparse_linear_attention(q, k, v, *projection(), **GEOMETRY, feature_map="softmax")
    assert out.isfinite().all()


@pytest.mark.parametrize("threads", [1, 3])
def test_slices_and_threads_change_nothing(threads, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", "portable")
    leaves = [x.requires_grad_() for x in (*qkv(600), *projection())]

    def everything() -> list[Tensor]:
        out = sparse_linear_attention(*leaves, **GEOMETRY, feature_map="softmax")
        return [out, *torch.autograd.grad(out, leaves, randn(*out.shape))]

    whole = everything()
    monkeypatch.setattr(on_cpu, "COPIED_ELEMENTS", 5 * 11 * 16 * D)  # 5 query blocks, 11 kept
    monkeypatch.setattr(form("sla", "portable"), "SUMMED_ELEMENTS", 64 * 6 * D)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        parts = everything()
    finally:
        torch.set_num_threads(before)
    for a, b in zip(parts, whole, strict=True):
        assert error(a, b) < 1e-6


def test_gathering_elsewhere_agrees(monkeypatch):
    """What other devices and the compiler take, forced onto the CPU."""
    leaves = [x.requires_grad_() for x in (*qkv(600), *projection())]
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", "portable")
    results = []
    for cpu_way in (True, False):
        monkeypatch.setattr(on_cpu, "runs", lambda x, cpu_way=cpu_way: cpu_way)
        monkeypatch.setattr(form("sla", "portable"), "GATHERED_ELEMENTS", 7 * 11 * 16 * D)
        out = sparse_linear_attention(*leaves, **GEOMETRY, feature_map="elu")
        results.append([out, *torch.autograd.grad(out, leaves, randn(*out.shape))])
    for a, b in zip(*results, strict=True):
        assert error(a, b) < 1e-5


def test_errors():
    q, k, v = qkv(63)
    rest = {**GEOMETRY, "feature_map": "softmax"}
    with pytest.raises(UsageError, match="must be equal"):
        sparse_linear_attention(q, k[:, :5], v, *ZERO, **rest)
    with pytest.raises(UsageError, match="'gelu'"):
        sparse_linear_attention(q, k, v, *ZERO, **{**rest, "feature_map": "gelu"})
    for bad in ({"topk": 0.0}, {"topk": 1.5}, {"block_q": 0}):
        with pytest.raises(UsageError, match="topk"):
            sparse_linear_attention(q, k, v, *ZERO, **{**rest, **bad})
