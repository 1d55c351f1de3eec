"""Muon: what orthogonalising does, and that its state and its safety match AdamW's."""

from __future__ import annotations

import pytest
import torch

from tests.mini import nano
from turbodiffusion.mini.muon import MATCH, Muon, orthogonalise
from turbodiffusion.mini.optim import MasterOptimizer
from turbodiffusion.mini.train_teacher import block_matrices, build

TRUE = torch.tensor(True)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 48, 16), (2, 16, 48)])
def test_singular_values_become_about_one_and_directions_stay(shape):
    m = randn(*shape)
    got = orthogonalise(m)
    u, s, vh = torch.linalg.svd(m, full_matrices=False)
    values = torch.linalg.svdvals(got)
    kept = s > 0.05 * s.amax(-1, keepdim=True)  # five rounds do not lift the tiniest ones
    assert values[kept].min() > 0.5 and values.max() < 1.3
    inside = u.mT @ got @ vh.mT  # diagonal where the singular vectors are kept
    assert (inside - torch.diag_embed(inside.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4


def test_a_zero_matrix_stays_zero():
    assert torch.equal(orthogonalise(torch.zeros(2, 4, 8)), torch.zeros(2, 4, 8))


def test_a_step_is_the_formula_matrix_by_matrix():
    """Two shapes, one of them twice: stacking changes nothing."""
    masters = [randn(8, 4, seed=1), randn(4, 4, seed=2), randn(8, 4, seed=3)]
    expected = [m.clone() for m in masters]
    momenta = [torch.zeros_like(m) for m in masters]
    optim = Muon(masters, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        grads = [randn(*m.shape, seed=10 * step + i) for i, m in enumerate(masters)]
        optim.step(grads, 0.05, TRUE)
        for i, grad in enumerate(grads):
            momenta[i] = 0.9 * momenta[i] + 0.1 * grad
            ahead = 0.1 * grad + 0.9 * momenta[i]
            size = MATCH * max(grad.shape) ** 0.5
            expected[i] = (
                expected[i] * (1 - 0.05 * 0.1) - 0.05 * size * orthogonalise(ahead[None])[0]
            )
    for got, want in zip(masters, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_broken_gradient_changes_nothing():
    masters = [randn(6, 4)]
    optim = Muon(masters, weight_decay=0.1)
    optim.step([randn(6, 4, seed=1)], 0.1, TRUE)
    before, momentum = masters[0].clone(), optim.state()[0].clone()
    optim.step([torch.full((6, 4), float("nan"))], 0.1, torch.tensor(False))
    assert torch.equal(masters[0], before) and torch.equal(optim.state()[0], momentum)


def test_only_the_matrices_of_the_blocks_are_taken():
    model = build(nano.nano(), nano.CPU)
    names = block_matrices(model)
    assert "dit.blocks.0.self_attn.q.weight" in names and "dit.blocks.0.ffn.2.weight" in names
    assert not [n for n in names if "bias" in n or "norm" in n or "modulation" in n]
    assert not [n for n in names if n.startswith("text.") or "embedding" in n or "head" in n]
    stage = nano.teacher_recipe(lr=1e-3, warmup=1)
    optim = MasterOptimizer(model.named_parameters(), stage, names, 2e-3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optim.step(1e-3)
    moved = {
        n: (p.detach() - before[n]).square().mean().sqrt() for n, p in model.named_parameters()
    }
    # Ones are a matrix of rank one: one direction of RMS size 2e-3 · 0.2 · √max / √(rows·columns).
    assert 0 < moved["dit.blocks.0.self_attn.q.weight"] < 2e-3 * MATCH
    assert moved["dit.patch_embedding.weight"] == pytest.approx(1e-3, rel=0.05)
