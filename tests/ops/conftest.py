"""Kernel tests: allocations full of NaN everywhere, and a fixture that forces the Triton forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.ops import interpreter
from turbodiffusion.ops import backend


@pytest.fixture(autouse=True)
def poisoned_allocations(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.empty`` and its kin hand out NaN, so an output that nobody writes fails its test."""
    for owner, name in (
        (torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"),
        (torch.Tensor, "new_empty"), (torch.Tensor, "new_empty_strided"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, _poisoning(getattr(owner, name)))


def _poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def allocate_poisoned(*args: object, **kwargs: object) -> Tensor:
        with torch.no_grad():
            fresh = allocate(*args, **kwargs)
            # Tracing and fake tensors have no memory to fill.
            return fresh if type(fresh) is not Tensor else interpreter.poison(fresh)

    return allocate_poisoned


@pytest.fixture
def triton_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Force the Triton form of every operator for one test; returns the device to test on.

    It is the test's parameter ``device`` if it has one, otherwise the GPU or the interpreter.
    """
    chosen = "cuda" if interpreter.GPU else "cpu"
    if "device" in request.fixturenames:
        chosen = str(request.getfixturevalue("device"))
    why = interpreter.obstacle(chosen)
    if why is not None:
        pytest.skip(why)
    early = interpreter.compiled_too_early()
    if early:
        pytest.fail(f"imported before {interpreter.VARIABLE} was set: {', '.join(early)}")
    monkeypatch.setenv(backend.VARIABLE, "triton")
    monkeypatch.setattr(backend, "_choices", {})
    return torch.device(chosen)
