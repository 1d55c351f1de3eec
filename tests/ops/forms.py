"""Shared by the operator tests: both forms of an operator, and what to compare them with."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch
from torch import Tensor

LENGTHS = (1, 63, 129, 600)  # below, around and above block sizes; never a multiple of one
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
FORMS = pytest.mark.parametrize("backend", ["naive", "portable"])
# Relative L2 of two float32 computations in another order, and of one more bf16 rounding.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


def form(operator: str, backend: str) -> ModuleType:
    return importlib.import_module(f"turbodiffusion.ops.{operator}.{backend}")


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative L2, counting a NaN as infinitely wrong; two zeros agree."""
    difference = torch.linalg.vector_norm(actual.double() - expected.double())
    size = torch.linalg.vector_norm(expected.double())
    result = (difference / size).item() if size > 0 else difference.item()
    return result if result == result else float("inf")
