"""The kernel tests' own tools: poison that shows, and a form that is really forced."""

from __future__ import annotations

import os

import pytest
import torch

from tests.ops import interpreter
from turbodiffusion.ops import backend


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_unwritten_floats_are_nan(dtype):
    for fresh in (
        torch.empty(3, 2, dtype=dtype),
        torch.empty_like(torch.zeros(2, 2).to(dtype)),
        torch.zeros(2).new_empty((4,), dtype=dtype),
        torch.empty_strided((2, 3), (3, 1), dtype=dtype),
    ):
        assert fresh.dtype is dtype and fresh.float().isnan().all()


def test_unwritten_integers_are_garbage_and_nothing_else_changes():
    assert torch.empty(4, dtype=torch.int8).eq(interpreter.GARBAGE).all()
    assert torch.empty(4, dtype=torch.int64).eq(interpreter.GARBAGE).all()
    assert torch.empty(2, dtype=torch.bool).all()
    assert torch.empty(0, 3).shape == (0, 3)
    assert torch.empty(2, requires_grad=True).requires_grad
    assert torch.empty(2, 3, device="meta").shape == (2, 3)
    assert torch.zeros(3).eq(0).all()


def test_the_triton_form_is_forced(triton_form):
    assert os.environ[backend.VARIABLE] == "triton" and not backend._choices
    assert triton_form.type == ("cuda" if interpreter.GPU else "cpu")


@pytest.mark.parametrize("device", ["cpu"])
def test_the_device_parameter_is_heeded(triton_form, device):
    assert triton_form.type == device


@pytest.mark.skipif(interpreter.GPU, reason="kernels are compiled where there is a GPU")
def test_a_kernel_compiled_too_early_is_found(monkeypatch):
    jit = pytest.importorskip("triton").runtime.jit.JITFunction
    assert interpreter.compiled_too_early() == []
    monkeypatch.setattr(backend, "kernel", object.__new__(jit), raising=False)
    assert interpreter.compiled_too_early() == ["turbodiffusion.ops.backend"]


def test_where_nothing_can_run_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(interpreter, "GPU", False)
    assert interpreter.obstacle("cuda") == "needs a CUDA device" or not _triton()
    monkeypatch.setenv(interpreter.VARIABLE, "0")
    assert "-m gpu" in str(interpreter.obstacle("cpu")) or not _triton()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "triton is not installed" in str(interpreter.obstacle("cpu"))


def _triton() -> bool:
    from importlib.util import find_spec

    return find_spec("triton") is not None
