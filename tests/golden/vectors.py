"""Finds and reads golden vectors: inputs, weights and outputs of the released networks.

The folder is ``TURBODIFFUSION_GOLDEN`` or, unset, ``../shared/golden`` beside the repository.
Files are found by name pattern and everything about them is read from their metadata, so another
set of vectors in the same format runs unchanged::

    @pytest.mark.parametrize("path", golden_files("dit_*"), ids=golden_id)
    def test_something(path):
        golden = load_golden(path)

An absent folder skips the tests. With the variable set, a folder or file that is not there is a
failure: whoever sets it wants these tests to run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

VARIABLE = "TURBODIFFUSION_GOLDEN"


def golden_folder() -> Path:
    """The folder that holds the vectors; it need not exist."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen) if chosen else Path(__file__).parents[3] / "shared" / "golden"


def golden_files(pattern: str) -> list[Path]:
    """Vectors whose name matches ``pattern``, for ``parametrize``.

    When there are none the list holds the pattern itself: the test is then collected, and
    :func:`load_golden` skips or fails it with the reason.
    """
    return sorted(golden_folder().glob(f"{pattern}.safetensors")) or [golden_folder() / pattern]


def golden_id(path: Path) -> str:
    """A readable test id."""
    return path.stem.replace("*", "")


@dataclass(frozen=True)
class Golden:
    """One file of vectors. ``golden["out"]`` is a tensor, ``metadata`` is text."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors called ``prefix.…``, without the prefix: ``group("sd")`` is the state dict."""
        start = prefix + "."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}


def load_golden(path: Path) -> Golden:
    """Read one file; skip (or, with the variable set, fail) the running test if there is none."""
    if not path.is_file():
        missing = f"no golden vectors {path.name!r} in {golden_folder()}"
        if os.environ.get(VARIABLE):
            pytest.fail(f"{missing}, which {VARIABLE} names")
        pytest.skip(missing)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Golden(path, file.metadata() or {}, tensors)


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected| in float64, the measure of every golden tolerance."""
    difference = torch.linalg.vector_norm(actual.double() - expected.double())
    return (difference / torch.linalg.vector_norm(expected.double())).item()
