"""The SLA kernels against the definition: map, values, gradients, and lists of every shape."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.ops.forms import error, form, randn
from tests.ops.interpreter import DEVICES, KERNEL_CASES
from turbodiffusion.ops.attention import attention
from turbodiffusion.ops.attention.config import AttentionConfig
from turbodiffusion.ops.attention.merge import merge
from turbodiffusion.ops.sla import maps, select_blocks, sparse_linear_attention

pytest.importorskip("triton", reason="Triton is not installed; it exists for Linux and Windows")

naive = form("sla", "naive")
VALUES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}
GRADIENTS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
NAMES = ("q", "k", "v", "W", "b")


def triton():
    """Imported late: the interpreter must be switched on before."""
    return form("sla", "triton")


def qkv(length: int, width: int = 16, heads: int = 1, dtype=torch.float32, device="cpu"):
    return [randn(1, length, heads, width, dtype=dtype, seed=i).to(device) for i in range(3)]


def projection(width: int = 16, device="cpu") -> tuple[Tensor, Tensor]:
    return randn(width, width).to(device), randn(width, seed=1).to(device)


def compare(inputs, blocks, block_q, block_k, feature_map, counts=None):
    """Output and every gradient of the operator against the definition on the same lists."""
    dtype, (_, length, _, width) = inputs[0].dtype, inputs[0].shape
    leaves = [x.detach().requires_grad_() for x in (*inputs, *projection(width, inputs[0].device))]
    grad = randn(*inputs[0].shape, dtype=dtype, seed=5).to(inputs[0].device)
    geometry = {"topk": 1.0, "block_q": block_q, "block_k": block_k, "feature_map": feature_map}
    out = sparse_linear_attention(*leaves, **geometry, blocks=blocks, counts=counts)
    expected = naive.sparse_linear_attention(*leaves, blocks, block_q, block_k, feature_map, counts)
    assert out.dtype is dtype and error(out, expected) < VALUES[dtype]
    for name, a, b in zip(
        NAMES,
        torch.autograd.grad(out, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    ):
        if length == 1 and name in "qk":
            # With one key these gradients are what is left of terms of order 1 that cancel.
            assert (a - b).abs().max() < 10 * GRADIENTS[dtype], name
        else:
            assert error(a, b) < GRADIENTS[dtype], name


@KERNEL_CASES
@pytest.mark.parametrize(
    ("length", "width", "block_q", "block_k", "feature_map"),
    [
        (1, 16, 128, 64, "softmax"),
        (63, 64, 128, 64, "relu"),
        (129, 16, 64, 64, "softmax"),
        (200, 32, 32, 16, "elu"),
        (130, 16, 48, 24, "relu"),  # no powers of two
        (260, 16, 96, 160, "elu"),  # more than one tile a block
        (600, 16, 128, 64, "softmax"),
        (1000, 16, 128, 64, "elu"),
        pytest.param(1000, 128, 128, 64, "softmax", marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients(
    length, width, block_q, block_k, feature_map, triton_form, device, dtype
):
    inputs = qkv(length, width, 1, dtype, device)
    topk = 0.4 if length < 500 else 0.15  # which keeps the interpreter's time in bounds
    blocks = select_blocks(*inputs[:2], topk=topk, block_q=block_q, block_k=block_k)
    compare(inputs, blocks, block_q, block_k, feature_map)


@KERNEL_CASES
def test_rows_of_different_length(triton_form, device, dtype):
    """A window map: counts differ, and past them a row holds what is no index."""
    inputs = qkv(150, 16, 2, dtype, device)
    blocks, counts = maps.sliding_window((5, 5, 6), (1, 1, 2), block_q=32, block_k=16)
    assert counts.unique().numel() > 1
    past = torch.arange(blocks.shape[-1]) >= counts[..., None]
    blocks = torch.where(past, 1 << 20, blocks).expand(1, 2, -1, -1).to(device)
    compare(inputs, blocks, 32, 16, "softmax", counts.expand(1, 2, -1).to(device))


@DEVICES
@pytest.mark.parametrize("peel", [True, False])
@pytest.mark.parametrize(("block_k", "kept"), [(16, 1), (16, 4), (16, 5), (32, 3), (64, 2)])
def test_tiles_of_one_two_and_part_of_a_block(peel, block_k, kept, triton_form, device):
    """Tiles of 32 keys: two blocks of 16, one of 32, half of one of 64; 100 keys."""
    q, k, v = qkv(100, 16, 2, device=device)
    scores = naive.block_scores(q, k, 32, block_k)
    blocks = naive.top_blocks(scores, min(kept, scores.shape[-1]))
    blocks[:, :, 0, -1] = scores.shape[-1] - 1  # the short last block is met
    lists = form("attention", "triton").BlockLists(blocks, 32, block_k)
    out, lse = form("attention", "triton").attend(
        q, k, v, lists, config=AttentionConfig(16, 32, 4, 2, peel)
    )
    expected, expected_lse = naive.sparse_attention(q, k, v, blocks, 32, block_k)
    assert error(out, expected) < 1e-5 and error(lse, expected_lse) < 1e-5


@DEVICES
@pytest.mark.parametrize(("length", "block"), [(1, 16), (63, 64), (129, 48), (600, 64)])
def test_scores_agree_with_the_definition(length, block, triton_form, device):
    q, k, _ = qkv(length, 16, 2, device=device)
    k += 3  # which smoothing takes away again
    scores = triton().block_scores(q, k, 2 * block, block)
    expected = naive.block_scores(q, k, 2 * block, block)
    if length <= block:
        assert scores.abs().max() < 1e-4  # a single mean less itself
    else:
        assert error(scores, expected) < 1e-5


@DEVICES
@pytest.mark.parametrize("width", [1, 5, 64, 75])
def test_selection_is_the_stable_sort(width, triton_form, device):
    """Ties, zeros of both signs, infinities, and every number kept from one to all."""
    scores = randn(3, 2, 2, width).mul(2).round()
    scores[0] = -0.0
    scores[1, 0, 0, ::2] = -math.inf
    scores[2, 1, 1, ::3] = math.inf
    scores[0, 0, 0, ::2] = 0.0
    scores = scores.to(device)
    for kept in sorted({1, (width + 1) // 3 or 1, width - 1 or 1, width}):
        assert torch.equal(triton().top_blocks(scores, kept), naive.top_blocks(scores, kept)), kept


@DEVICES
def test_transposition_lists_who_chose_a_block(triton_form, device):
    mask = randn(2, 2, 70, 33) > 0.5
    mask[..., 7] = False
    mask[..., 0] |= ~mask.any(-1)
    blocks, counts = (x.to(device) for x in maps.from_mask(mask))
    lists = form("attention", "triton").BlockLists(blocks, 16, 8, counts)
    offsets, chosen = (x.tolist() for x in triton().transpose(lists, 33 * 8))
    columns = mask.transpose(2, 3).reshape(-1, 70)
    assert offsets[-1] == mask.sum()
    for i, column in enumerate(columns):
        assert chosen[offsets[i] : offsets[i + 1]] == column.nonzero().flatten().tolist()


@DEVICES
def test_all_blocks_and_no_projection_is_dense_attention(triton_form, device):
    q, k, v = qkv(129, 16, 2, device=device)
    zero = torch.zeros(16, 16, device=device), torch.zeros(16, device=device)
    out = sparse_linear_attention(
        q, k, v, *zero, topk=1.0, block_q=32, block_k=16, feature_map="softmax"
    )
    assert error(out, form("attention", "naive").attention(q, k, v)) < 1e-5
    assert error(out, attention(q, k, v)) < 1e-6


@DEVICES
def test_unselected_values_never_reach_the_sparse_branch(triton_form, device):
    """Poison: keys and values of every block that no query block chose are NaN."""
    q, k, v = qkv(96, device=device)
    chosen = torch.tensor([[[[1, 3]] * 3]], device=device)
    for x in (k, v):
        x[:, :16] = x[:, 32:48] = x[:, 64:] = float("nan")
    assert triton().sparse_attention(q, k, v, chosen, 32, 16)[0].isfinite().all()


@KERNEL_CASES
def test_zero_values_outliers_and_strides(triton_form, device, dtype):
    q, k, v = randn(1, 129, 3, 2, 16, dtype=dtype).to(device).unbind(2)
    weight, bias = projection(device=device)
    rest = {"topk": 0.3, "block_q": 32, "block_k": 16}
    out = sparse_linear_attention(
        q, k, torch.zeros_like(v), weight, bias, **rest, feature_map="elu"
    )
    torch.testing.assert_close(out, bias.to(dtype).expand_as(out))
    v[..., 3] = 0
    q[:, 5], k[:, 100] = 1000, -1000
    for feature_map in ("softmax", "relu"):
        blocks = select_blocks(q, k, **rest)
        out = sparse_linear_attention(
            q, k, v, weight, bias, **rest, feature_map=feature_map, blocks=blocks
        )
        expected = naive.sparse_linear_attention(q, k, v, weight, bias, blocks, 32, 16, feature_map)
        assert error(out, expected) < VALUES[dtype]


@DEVICES
def test_parts_of_the_keys_merge_to_the_whole(triton_form, device):
    """Two halves of the blocks, as two processes hold them; some rows have none in one half."""
    q, k, v = qkv(96, 16, 2, device=device)
    mask = (randn(1, 2, 3, 6) > 0).to(device)
    mask[0, 0, 0, :3], mask[..., 4] = False, True
    parts = []
    for keep, keys in (
        (mask, slice(None)),
        (mask[..., :3], slice(48)),
        (mask[..., 3:], slice(48, None)),
    ):
        blocks, counts = maps.from_mask(keep)
        arguments = q, k[:, keys], v[:, keys], blocks, 32, 16, counts
        out, lse = triton().sparse_attention(*arguments)
        expected, expected_lse = naive.sparse_attention(*arguments)
        assert error(out, expected) < 1e-5
        torch.testing.assert_close(lse, expected_lse, atol=1e-4, rtol=1e-4)
        parts.append((out, lse))
    merged, lse = merge(*zip(*parts[1:], strict=True))
    assert error(merged, parts[0][0]) < 1e-6 and error(lse, parts[0][1]) < 1e-5


@DEVICES
def test_same_bytes_every_time(triton_form, device):
    inputs = [x.requires_grad_() for x in (*qkv(129, device=device), *projection(device=device))]
    runs = []
    for _ in range(2):
        out = sparse_linear_attention(
            *inputs, topk=0.4, block_q=32, block_k=16, feature_map="softmax"
        )
        runs.append([out, *torch.autograd.grad(out, inputs, torch.ones_like(out))])
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)
