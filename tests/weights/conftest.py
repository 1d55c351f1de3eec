"""Files that several tests read, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from turbodiffusion.weights.synthetic import write_synthetic


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The micro model's networks in the released layouts."""
    folder = tmp_path_factory.mktemp("weights")
    name = "micro-teacher"
    return {
        "bf16": write_synthetic(name, folder / "bf16.pth"),
        "int8": write_synthetic(name, folder / "int8.pth", quantized=True),
        "plain": write_synthetic(name, folder / "plain.pth", sla=False),
        "vae": write_synthetic(name, folder / "vae.pth", role="vae"),
        "text": write_synthetic(name, folder / "text.pth", role="text_encoder"),
        "safetensors": write_synthetic(name, folder / "bf16.safetensors"),
    }
