"""The released extension's functions: values, outputs in place, and an import that is light."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import turbo_diffusion_ops as ops
from tests.ops.forms import error, randn

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("m", [1, 63, 129, 600])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_quantised_product(m, dtype):
    x, weight = randn(m, 256, dtype=dtype), randn(384, 256, dtype=dtype)
    q, scale = ops.quant_cuda(x, None, None)
    assert q.dtype is torch.int8 and scale.shape == (-(-m // 128), 2)
    restored = q * scale.repeat_interleave(128, 0)[:m].repeat_interleave(128, 1)
    assert error(restored, x) < 0.012
    q_w, scale_w = ops.quant_cuda(weight)
    out = torch.full((m, 384), float("nan"), dtype=dtype)
    assert ops.gemm_cuda(q, scale, q_w, scale_w, out) is None
    restored_w = q_w * scale_w.repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert error(out, restored.double() @ restored_w.double().T) < 4e-3
    assert error(out, x.double() @ weight.double().T) < 0.02


def test_quantiser_writes_where_it_is_told():
    x = randn(129, 256, dtype=torch.bfloat16)
    q, scale = torch.empty(129, 256, dtype=torch.int8), torch.empty(2, 2)
    returned = ops.quant_cuda(x, q, scale)
    assert returned[0] is q and returned[1] is scale
    for made, given in zip(ops.quant_cuda(x), returned, strict=True):
        assert torch.equal(made, given)


def test_norms_are_the_exact_ones():
    x, weight, bias = 3 + randn(63, 1536), randn(1536), randn(1536)
    out = torch.empty(63, 1536)
    x64 = x.double()
    rms = x64 * torch.rsqrt(x64.square().mean(1, keepdim=True) + 1e-6)
    assert error(ops.rms_norm_cuda(x, 1e-6), rms) < 1e-6
    assert ops.rms_norm_cuda(x, 1e-6, weight, out) is out
    assert error(out, rms * weight) < 1e-6
    centred = torch.nn.functional.layer_norm(x64, (1536,), eps=1e-6)
    assert error(ops.layer_norm_cuda(x, 1e-6), centred) < 1e-6
    assert error(ops.layer_norm_cuda(x, 1e-6, None, bias), centred + bias) < 1e-6
    assert ops.layer_norm_cuda(x, 1e-6, weight, bias, out) is out
    assert error(out, centred * weight + bias) < 1e-6


def test_argument_order_is_that_of_the_extension():
    orders = {
        "quant_cuda": ["input", "output", "output_scale"],
        "gemm_cuda": ["A", "A_scale", "B", "B_scale", "C"],
        "rms_norm_cuda": ["input", "eps", "weight", "output"],
        "layer_norm_cuda": ["input", "eps", "weight", "bias", "output"],
    }
    for name, order in orders.items():
        assert list(inspect.signature(getattr(ops, name)).parameters) == order
    assert sorted(orders) == ops.__all__


def test_import_needs_neither_torch_nor_triton():
    code = "import sys, turbo_diffusion_ops as o; print(bool({'torch', 'triton'} & {*sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
