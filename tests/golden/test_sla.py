"""The SLA operator against the released kernel and against float32 autograd of its formula.

Without a GPU the kernels are interpreted, which has no bf16 arithmetic: they replay what the files
say in float32. On a CUDA device they replay everything.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden.vectors import Golden, golden_files, golden_id, load_golden, relative_l2
from tests.ops import interpreter
from turbodiffusion.ops import backend as seam
from turbodiffusion.ops.sla import block_map, sparse_linear_attention

FILES = pytest.mark.parametrize("path", golden_files("sla_*"), ids=golden_id)
FP32, BF16 = torch.float32, torch.bfloat16
PYTORCH = [pytest.param(name, "cpu", id=name) for name in ("naive", "portable")]
ON_GPU = pytest.param("triton", "cuda", id="triton-gpu", marks=pytest.mark.gpu)
FORMS = pytest.mark.parametrize(("backend", "device"), [*PYTORCH, ON_GPU])
CASES = pytest.mark.parametrize(
    ("backend", "device", "dtype"),
    [
        pytest.param(*form.values, dtype, id=f"{form.id}-{name}", marks=form.marks)
        for form in (*PYTORCH, ON_GPU)
        for name, dtype in (("fp32", FP32), ("bf16", BF16))
    ]
    + [pytest.param("triton", "cpu", FP32, id="triton-interpreter-fp32")],
)
GRADIENTS = ("q", "k", "v", "proj_l.weight", "proj_l.bias")


@pytest.fixture(autouse=True)
def forced(backend, device, monkeypatch):
    why = interpreter.obstacle(device) if backend == "triton" else None
    if why is not None:
        pytest.skip(why)
    monkeypatch.setenv(seam.VARIABLE, backend)
    monkeypatch.setattr(seam, "_choices", {})


def load(path: Path, device: str) -> Golden:
    golden = load_golden(path)
    tensors = {name: tensor.to(device) for name, tensor in golden.tensors.items()}
    return replace(golden, tensors=tensors)


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
@FORMS
def test_block_map_is_equal(path, device):
    golden = load(path, device)
    chosen = block_map(golden["in.q"], golden["in.k"], **geometry(golden))
    assert torch.equal(chosen, golden["block_map"].bool())


@FILES
@FORMS
def test_bf16(path, device):
    golden = load(path, device)
    out, _ = run(golden, BF16)
    assert out.dtype is BF16
    assert relative_l2(out, golden["out"]) < 1e-2


@FILES
@CASES
def test_gradients(path, device, dtype):
    golden = load(path, device)
    out, leaves = run(golden, dtype, blocks=stored_blocks(golden))
    if dtype is FP32:
        assert relative_l2(out, golden["out_fp32"]) < 1e-5
    gradients = torch.autograd.grad(out, leaves, golden["in.grad_out"].to(dtype))
    for name, gradient in zip(GRADIENTS, gradients, strict=True):
        error = relative_l2(gradient, golden[f"grad.{name}"])
        assert error < (1e-4 if dtype is FP32 else 2e-2), name
