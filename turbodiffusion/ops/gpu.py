"""What the Triton forms share: where they may run, and the machine they are tuned for.

A Triton form's ``obstacle`` is :func:`obstacle`. Kernels need an NVIDIA GPU of capability 8.0 or
newer (current Triton has no matrix product for 7.5), or, for tests, Triton's interpreter on the
CPU: ``TRITON_INTERPRET=1`` together with ``TURBODIFFUSION_BACKEND=triton``. The interpreter is far
too slow to be chosen by itself.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

OLDEST = (8, 0)
"""Lowest capability for which current Triton has tensor-core products."""


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


def obstacle(device: torch.device) -> str | None:
    """Why no Triton kernel can run on ``device``, as a sentence; None if one can."""
    if importlib.util.find_spec("triton") is None:
        return "Its triton form needs triton, which is not installed."
    if device.type == "cpu":
        forced = os.environ.get("TURBODIFFUSION_BACKEND", "").strip().lower() == "triton"
        if interpreted() and forced:
            return None
        return "Triton kernels need an NVIDIA GPU."
    if device.type != "cuda" or torch.version.cuda is None:
        return f"Triton kernels are made for NVIDIA GPUs, not for {device.type}."
    found = capability(device)
    if found < OLDEST:
        return (
            f"Triton has no tensor-core products for compute capability {found[0]}.{found[1]}; "
            f"they begin at {OLDEST[0]}.{OLDEST[1]}."
        )
    return None


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device; the oldest one for the interpreter's CPU tensors."""
    if device.type != "cuda":
        return OLDEST
    return _capability(torch.cuda.current_device() if device.index is None else device.index)


def has_fp8(device: torch.device) -> bool:
    """Whether the device multiplies e4m3: NVIDIA GPUs of capability 8.9 and newer."""
    nvidia = device.type == "cuda" and torch.version.cuda is not None
    return nvidia and capability(device) >= (8, 9)


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@functools.cache
def multiprocessors(index: int) -> int:
    """Number of streaming multiprocessors of CUDA device ``index``: the width of a full wave."""
    return torch.cuda.get_device_properties(index).multi_processor_count
