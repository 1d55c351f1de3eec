"""The kernels of 8-bit attention against the emulation of their own rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.forms import error, form, randn
from tests.ops.interpreter import DEVICES, KERNEL_CASES
from turbodiffusion.ops.gpu import capability
from turbodiffusion.ops.sage import sage_attention, sage_sparse_linear_attention
from turbodiffusion.ops.sage.config import CoreConfig
from turbodiffusion.ops.sla import select_blocks

pytest.importorskip("triton", reason="Triton is not installed; it exists for Linux and Windows")

naive = form("sage", "naive")
TOLERANCE = 5e-3  # section 9 of the operator definitions, against the emulation
PV = pytest.mark.parametrize("pv", ["fp16", "bf16", "fp8"])


def triton():
    """Imported late: the interpreter must be switched on before."""
    return form("sage", "triton")


def qkv(length: int, keys: int | None = None, width: int = 32, heads: int = 1, dtype=torch.float32,
        device="cpu") -> list[Tensor]:  # fmt: skip
    sizes = (length, keys or length, keys or length)
    return [randn(1, n, heads, width, dtype=dtype, seed=i).to(device) for i, n in enumerate(sizes)]


def skip_unless_possible(pv: str, device: str) -> None:
    if device == "cpu" and pv != "fp16":
        pytest.skip("the interpreter computes neither bf16 nor e4m3")
    if device == "cuda" and pv == "fp8" and capability(torch.device(device)) < (8, 9):
        pytest.skip("this GPU has no e4m3")


@KERNEL_CASES
@PV
@pytest.mark.parametrize(("length", "keys"), [(1, 1), (63, 130), (129, 63), (200, 200)])
def test_dense_is_its_emulation(triton_form, device, dtype, pv, length, keys):
    skip_unless_possible(pv, device)
    q, k, v = qkv(length, keys, dtype=dtype, device=device)
    k = k + 3 * randn(1, 1, 1, 32, seed=9).to(k)
    out, lse = sage_attention(q, k, v, pv=pv, return_lse=True)
    expected, expected_lse = naive.sage_attention(q, k, v, True, pv)
    assert out.dtype is dtype and error(out, expected) < TOLERANCE
    assert (lse - expected_lse).abs().max() < 2e-3


CASES = [(1, 32, 16), (63, 32, 16), (129, 64, 32), (600, 128, 64)]


@KERNEL_CASES
@PV
@pytest.mark.parametrize(("length", "block_q", "block_k"), CASES)
@pytest.mark.parametrize("feature_map", ["softmax", "elu", "relu"])
def test_sparse_is_its_emulation(
    triton_form, device, dtype, pv, length, block_q, block_k, feature_map
):
    skip_unless_possible(pv, device)
    if pv == "fp8" and block_k < 32:
        pytest.skip("e4m3 products sum 32 keys")
    q, k, v = qkv(length, dtype=dtype, device=device)
    projection = randn(32, 32).to(device), randn(32, seed=1).to(device)
    geometry = {"topk": 0.3, "block_q": block_q, "block_k": block_k}
    blocks = select_blocks(q, k, **geometry)
    out = sage_sparse_linear_attention(
        q, k, v, *projection, **geometry, feature_map=feature_map, blocks=blocks, pv=pv
    )
    expected = naive.sage_sparse_linear_attention(
        q, k, v, *projection, blocks, 0.3, block_q, block_k, feature_map, pv
    )
    assert out.dtype is dtype and error(out, expected) < TOLERANCE


@DEVICES
def test_its_own_map_is_that_of_sla(triton_form, device):
    """Blocks are scored from means that the quantising passes leave behind."""
    q, k, v = qkv(600, device=device)
    projection = torch.zeros(32, 32, device=device), torch.zeros(32, device=device)
    rest = {"topk": 0.3, "block_q": 64, "block_k": 32, "feature_map": "softmax", "pv": "fp16"}
    blocks = select_blocks(q, k, topk=0.3, block_q=64, block_k=32)
    own = sage_sparse_linear_attention(q, k, v, *projection, **rest)
    assert torch.equal(
        own, sage_sparse_linear_attention(q, k, v, *projection, **rest, blocks=blocks)
    )


@DEVICES
def test_key_blocks_too_large_for_the_fused_pass(triton_form, device):
    """128 keys a block, as released for Hopper: the linear state takes a pass of its own."""
    q, k, v = qkv(300, device=device)
    projection = randn(32, 32).to(device), randn(32, seed=1).to(device)
    geometry = {"topk": 0.5, "block_q": 64, "block_k": 128}
    blocks = select_blocks(q, k, **geometry)
    out = sage_sparse_linear_attention(
        q, k, v, *projection, **geometry, feature_map="softmax", blocks=blocks, pv="fp16"
    )
    expected = naive.sage_sparse_linear_attention(
        q, k, v, *projection, blocks, 0.5, 64, 128, "softmax", "fp16"
    )
    assert error(out, expected) < TOLERANCE


@DEVICES
@pytest.mark.parametrize("topk", [0.01, 1.0], ids=["one block", "all blocks"])
def test_one_block_and_all_blocks(triton_form, device, topk):
    q, k, v = qkv(130, device=device)
    nothing = torch.zeros(32, 32, device=device), torch.zeros(32, device=device)
    geometry = {"topk": topk, "block_q": 128, "block_k": 64}
    out = sage_sparse_linear_attention(q, k, v, *nothing, **geometry, feature_map="elu", pv="fp16")
    blocks = select_blocks(q, k, **geometry)
    assert blocks.shape[-1] == (3 if topk == 1.0 else 1)
    expected = naive.sage_sparse_linear_attention(
        q, k, v, *nothing, blocks, topk, 128, 64, "elu", "fp16"
    )
    assert error(out, expected) < TOLERANCE
    if topk == 1.0:
        assert error(out, sage_attention(q, k, v, pv="fp16")) < TOLERANCE


@DEVICES
@PV
def test_zero_channels_and_outlier_rows(triton_form, device, pv):
    skip_unless_possible(pv, device)
    q, k, v = qkv(129, device=device)
    v[..., 3] = 0
    q[:, 5], k[:, 100] = 1000, -1000
    out = sage_attention(q, k, v, pv=pv)
    assert out.isfinite().all() and (out[..., 3] == 0).all()
    assert error(out, naive.sage_attention(q, k, v, True, pv)[0]) < TOLERANCE


@DEVICES
def test_rows_with_fewer_blocks_than_the_list_is_wide(triton_form, device):
    """Counts cut the lists; a row without any block is zero, with a log-sum of minus infinity."""
    module = triton()
    q, k, v = qkv(96, device=device)
    keys = module.prepare_keys(k, v, 32, "fp16")
    queries = module.prepare_queries(q, 32, keys)
    blocks = torch.tensor([[[[0, 2], [1, 2], [0, 1]]]], device=device)
    counts = torch.tensor([[[2, 1, 0]]], dtype=torch.int32, device=device)
    out = torch.empty_like(q)
    module.attend(queries, keys, out, blocks=blocks, counts=counts)
    assert (out[:, 64:] == 0).all()
    for rows, chosen in ((slice(0, 32), [0, 2]), (slice(32, 64), [1])):
        listed = torch.tensor([[[chosen]]], device=device)
        part = torch.empty_like(q[:, rows])
        module.attend(
            module.prepare_queries(q[:, rows].contiguous(), 32, keys), keys, part, blocks=listed
        )
        assert error(out[:, rows], part) < 1e-6


@DEVICES
@pytest.mark.parametrize("length", [1, 63, 200, 256])
def test_parts_of_a_block_are_rows_of_their_own(triton_form, device, length):
    """With lists of different lengths, the last key block short or not, and one row of none."""
    module = triton()
    q, k, v = qkv(length, device=device)
    keys = module.prepare_keys(k, v, 32, "fp16")
    queries = module.prepare_queries(q, 64, keys)
    rows, count = -(-length // 64), -(-length // 32)
    blocks = torch.arange(count, device=device).expand(1, 1, rows, count)
    counts = torch.arange(rows, device=device, dtype=torch.int32).view(1, 1, rows) % (count + 1)
    for chosen in (None, counts):
        outs = [
            module.attend(
                queries, keys, torch.empty_like(q), blocks=blocks, counts=chosen,
                config=CoreConfig(4, 1, parts=parts),
            )
            for parts in (1, 2, 4)
        ]  # fmt: skip
        assert error(outs[1], outs[0]) < 1e-6 and error(outs[2], outs[0]) < 1e-6


@DEVICES
def test_inputs_of_other_strides(triton_form, device):
    """Heads before tokens, and slices of a wider tensor, as a joined projection gives them."""
    wide = randn(1, 129, 3, 2, 32).to(device)
    q, k, v = wide.unbind(2)
    strided = sage_attention(q, k, v, pv="fp16")
    plain = sage_attention(*(x.contiguous() for x in (q, k, v)), pv="fp16")
    assert torch.equal(strided, plain)


@pytest.mark.gpu
@pytest.mark.parametrize("block_q,block_k", [(128, 64), (64, 128)])
@PV
def test_every_candidate_computes_the_same(block_q, block_k, pv):
    device = torch.device("cuda")
    skip_unless_possible(pv, "cuda")
    module = triton()
    q, k, v = qkv(1000, width=128, heads=2, dtype=torch.bfloat16, device=device)
    blocks = select_blocks(q, k, topk=0.3, block_q=block_q, block_k=block_k)
    keys = module.prepare_keys(k, v, block_k, pv)
    queries = module.prepare_queries(q, block_q, keys)
    found = capability(device)
    outs = []
    for config in CoreConfig.candidates(found, block_k):
        out = torch.full_like(q, float("nan"))
        outs.append(module.attend(queries, keys, out, blocks=blocks, config=config))
        assert error(outs[-1], outs[0]) < TOLERANCE, config


@DEVICES
def test_places_of_keys_are_a_permutation_of_sixteen(triton_form, device):
    """What is stored at a place is the key that the attention kernel takes it for."""
    from tests.ops.places import places

    place, key = places(device)
    assert sorted(place.tolist()) == list(range(32))
    assert key[place.long()].tolist() == list(range(32))
    assert place.tolist()[:8] == [0, 1, 8, 9, 2, 3, 10, 11]
