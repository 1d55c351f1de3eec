"""Which released model suits this computer: the one command that the embedded model recommends."""

from __future__ import annotations

import torch

from turbodiffusion.models.cards import CARDS

NEEDS_GB = (
    (40, "TurboWan2.1-T2V-14B-720P", "no"),
    (24, "TurboWan2.1-T2V-14B-720P", "yes"),
    (16, "TurboWan2.1-T2V-14B-480P", "yes"),
    (12, "TurboWan2.1-T2V-1.3B-480P", "no"),
    (0, "TurboWan2.1-T2V-1.3B-480P", "yes"),
)
"""GPU memory → model and whether to take its 8-bit file, largest first."""


def real_model_command(gpu_gb: float | None = None) -> str:
    """``turbodiffusion download …`` for a GPU of ``gpu_gb`` GB; default: the first one here."""
    if gpu_gb is None and torch.cuda.is_available():
        gpu_gb = torch.cuda.get_device_properties(0).total_memory / 2**30
    name, quantised = next((n, q) for need, n, q in NEEDS_GB if (gpu_gb or 0) >= need * 0.95)
    assert name in CARDS
    command = f"turbodiffusion download {name} --quantised {quantised}"
    return command if gpu_gb else f"{command}   (made for an NVIDIA GPU; none is visible here)"
