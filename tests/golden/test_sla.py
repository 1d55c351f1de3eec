"""The SLA operator against the released kernel and against float32 autograd of its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.golden.vectors import Golden, golden_files, golden_id, load_golden, relative_l2
from turbodiffusion.ops.sla import block_map, sparse_linear_attention

FILES = pytest.mark.parametrize("path", golden_files("sla_*"), ids=golden_id)
BACKENDS = pytest.mark.parametrize("backend", ["naive", "portable"])
GRADIENTS = ("q", "k", "v", "proj_l.weight", "proj_l.bias")


@pytest.fixture(autouse=True)
def forced(backend, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", backend)


def geometry(golden: Golden) -> dict[str, float | int]:
    meta = golden.metadata
    return {
        "topk": float(meta["topk_ratio"]),
        "block_q": int(meta["block_q"]),
        "block_k": int(meta["block_k"]),
    }


def stored_blocks(golden: Golden) -> Tensor:
    """The stored map as indices of the kept blocks, ascending."""
    kept = golden["block_map"].bool()
    return kept.nonzero()[:, -1].view(*kept.shape[:-1], -1)


def run(golden: Golden, dtype: torch.dtype, **more: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Output and, in the order of ``GRADIENTS``, the leaves it was computed from."""
    leaves = [golden[f"in.{name}"].to(dtype).requires_grad_() for name in "qkv"]
    leaves += [golden[f"proj_l.{name}"].clone().requires_grad_() for name in ("weight", "bias")]
    out = sparse_linear_attention(
        *leaves, **geometry(golden), feature_map=golden.metadata["feature_map"], **more
    )
    return out, leaves


@FILES
@BACKENDS
def test_block_map_is_equal(path, backend):
    golden = load_golden(path)
    chosen = block_map(golden["in.q"], golden["in.k"], **geometry(golden))
    assert torch.equal(chosen, golden["block_map"].bool())


@FILES
@BACKENDS
def test_bf16(path, backend):
    golden = load_golden(path)
    out, _ = run(golden, torch.bfloat16)
    assert out.dtype is torch.bfloat16
    assert relative_l2(out, golden["out"]) < 1e-2


@FILES
@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_gradients(path, backend, dtype):
    golden = load_golden(path)
    out, leaves = run(golden, dtype, blocks=stored_blocks(golden))
    if dtype is torch.float32:
        assert relative_l2(out, golden["out_fp32"]) < 1e-5
    gradients = torch.autograd.grad(out, leaves, golden["in.grad_out"].to(dtype))
    for name, gradient in zip(GRADIENTS, gradients, strict=True):
        error = relative_l2(gradient, golden[f"grad.{name}"])
        assert error < (1e-4 if dtype is torch.float32 else 2e-2), name
