"""Maps that plug into SLA, and what counts of a list mean to every form."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.ops.forms import error, form, randn
from turbodiffusion.errors import UsageError
from turbodiffusion.ops.attention import attention
from turbodiffusion.ops.sla import maps, sparse_linear_attention

D = 16
ZERO = torch.zeros(D, D), torch.zeros(D)
REST = {"topk": 1.0, "block_q": 32, "block_k": 16, "feature_map": "softmax"}


def rows(blocks, counts):
    """The lists of a map as Python lists, the padding cut off."""
    return [
        row[:count].tolist()
        for row, count in zip(blocks.flatten(0, 2), counts.flatten(), strict=True)
    ]


def test_from_mask_lists_what_is_true():
    mask = torch.tensor([[[[1, 0, 1, 1], [0, 1, 0, 0]]]], dtype=torch.bool)
    blocks, counts = maps.from_mask(mask)
    assert rows(blocks, counts) == [[0, 2, 3], [1]] and blocks.shape[-1] == 3
    assert torch.equal(form("sla", "naive").listed(blocks, counts, 4), mask)


@pytest.mark.parametrize("backend", ["naive", "portable"])
def test_counts_cut_lists_short(backend, monkeypatch):
    """Past its count a row holds anything, even what is no index."""
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)
    q, k, v = (randn(1, 96, 2, D, seed=i) for i in range(3))
    short = torch.tensor([[0, 2], [1, 5], [3, 4]]).expand(1, 2, 3, 2)
    long = torch.cat([short, torch.full((1, 2, 3, 2), 1 << 40)], -1)
    counts = torch.full((1, 2, 3), 2)
    expected = sparse_linear_attention(q, k, v, *ZERO, **REST, blocks=short)
    out = sparse_linear_attention(q, k, v, *ZERO, **REST, blocks=long, counts=counts)
    assert error(out, expected) < 1e-6


@pytest.mark.parametrize("backend", ["naive", "portable"])
def test_dense_map_is_dense_attention(backend, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)
    q, k, v = (randn(1, 100, 2, D, seed=i) for i in range(3))
    blocks, counts = (x.expand(1, 2, *x.shape[2:]) for x in maps.dense(4, 7))
    out = sparse_linear_attention(q, k, v, *ZERO, **REST, blocks=blocks, counts=counts)
    assert error(out, attention(q, k, v)) < 1e-6


@pytest.mark.parametrize("window", [(0, 0, 0), (1, 1, 2), (9, 9, 9)])
def test_window_lists_every_block_with_a_near_token(window):
    grid, block_q, block_k = (3, 4, 5), 8, 4
    blocks, counts = maps.sliding_window(grid, window, block_q=block_q, block_k=block_k)
    listed = [set(row) for row in rows(blocks, counts)]
    places = list(itertools.product(*map(range, grid)))
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            if all(abs(x - y) <= w for x, y, w in zip(a, b, window, strict=True)):
                assert j // block_k in listed[i // block_q]
    if window == (9, 9, 9):
        assert all(row == set(range(15)) for row in listed)
    if window == (0, 0, 0):  # queries 0 … 7 lie in rows 0 and 1 of frame 0; key 12 in row 2
        assert listed[0] == {0, 1, 2}


def test_mass_keeps_the_fewest_blocks_that_reach_it():
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[[2, 0, 3, 1]].view(1, 1, 1, 4)
    for mass, expected in ((0.01, [1]), (0.49, [1]), (0.75, [1, 3]), (0.94, [0, 1, 3])):
        assert rows(*maps.cumulative_mass(scores, mass, 1)) == [expected]
    assert rows(*maps.cumulative_mass(scores * 4, 1.0, 16)) == [[0, 1, 2, 3]]
    assert rows(*maps.cumulative_mass(torch.zeros(1, 1, 1, 4), 0.5, 1)) == [[0, 1]]


def test_errors():
    with pytest.raises(UsageError, match=r"\(0, 4, 4\)"):
        maps.sliding_window((0, 4, 4), (1, 1, 1), block_q=8, block_k=8)
    with pytest.raises(UsageError, match=r"1\.5"):
        maps.cumulative_mass(torch.zeros(1, 1, 1, 4), 1.5, 16)
