"""Running Triton kernels in tests: in the interpreter without a GPU, compiled with one.

The interpreter executes a kernel's statements with NumPy on CPU tensors. It knows fp32, fp16 and
the integers; its bf16 arithmetic is wrong and its casts to fp8 do not saturate, so bf16 and fp8
products are left to the ``gpu`` variant of the same test::

    @KERNEL_CASES
    def test_something(triton_form, device, dtype): ...

``triton_form`` forces the Triton form and skips where it cannot run. ``TRITON_INTERPRET`` decides
when a kernel's module, or Triton itself, is imported, for good; ``tests/conftest.py`` sets it
before any is.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

VARIABLE = "TRITON_INTERPRET"
GPU = torch.cuda.is_available()

DEVICES = pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", id="interpreter"), pytest.param("cuda", id="gpu", marks=pytest.mark.gpu)],
)
KERNEL_CASES = pytest.mark.parametrize(
    ("device", "dtype"),
    [
        pytest.param("cpu", torch.float32, id="interpreter-fp32"),
        pytest.param("cpu", torch.float16, id="interpreter-fp16"),
        pytest.param("cuda", torch.float32, id="gpu-fp32", marks=pytest.mark.gpu),
        pytest.param("cuda", torch.float16, id="gpu-fp16", marks=pytest.mark.gpu),
        pytest.param("cuda", torch.bfloat16, id="gpu-bf16", marks=pytest.mark.gpu),
    ],
)
"""Where a kernel runs and in which dtype, as far as the place can compute it."""


def switch_on() -> None:
    """Have kernels interpreted on machines without a CUDA device; elsewhere they are compiled."""
    if not GPU:
        os.environ.setdefault(VARIABLE, "1")


def obstacle(device: str) -> str | None:
    """Why no kernel can be tested on ``device``, or None."""
    if importlib.util.find_spec("triton") is None:
        return f"triton is not installed, as is usual on {sys.platform}"
    if device == "cuda":
        return None if GPU else "needs a CUDA device"
    if os.environ.get(VARIABLE) != "1":
        return "kernels are compiled here, not interpreted; their tests run with -m gpu"
    return None


def compiled_too_early() -> list[str]:
    """Modules whose kernels were built before the interpreter was switched on."""
    if os.environ.get(VARIABLE) != "1":
        return []
    from triton.runtime.jit import JITFunction

    return sorted(
        name
        for name, module in list(sys.modules.items())
        if name.startswith(("turbodiffusion.ops.", "triton.language"))
        and isinstance(module, ModuleType)
        and any(type(value) is JITFunction for value in vars(module).values())
    )


GARBAGE = 0x5A
"""What unwritten integers hold: 90, far from anything right yet no wild address as an index."""


def poison(fresh: Tensor) -> Tensor:
    """Fill a new allocation with NaN, or with ``GARBAGE`` where the dtype has no NaN."""
    if fresh.numel() == 0 or fresh.device.type == "meta":
        return fresh
    if fresh.dtype.is_floating_point and fresh.element_size() == 1:
        fresh.view(torch.uint8).fill_(0x7F)  # NaN of e4m3fn and of e5m2
        return fresh
    if fresh.dtype.is_floating_point or fresh.dtype.is_complex:
        return fresh.fill_(float("nan"))
    return fresh.fill_(True if fresh.dtype is torch.bool else GARBAGE)
