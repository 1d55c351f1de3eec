"""Which released model suits this computer: the one command that the embedded model recommends."""

from __future__ import annotations

import torch

NEEDS_GB = (
    (40, "TurboWan2.1-T2V-14B-720P", "no"),
    (24, "TurboWan2.1-T2V-14B-720P", "yes"),
    (16, "TurboWan2.1-T2V-14B-480P", "yes"),
    (12, "TurboWan2.1-T2V-1.3B-480P", "no"),
    (0, "TurboWan2.1-T2V-1.3B-480P", "yes"),
)
"""GPU memory → model and whether to take its 8-bit file, largest first."""

UNQUANTISED_GB = {"TurboWan2.1-T2V-1.3B-480P": 12}
"""GPU memory from which the bf16 file is the better choice; 40 for the other models."""


def gpu_memory() -> float:
    """GB of the first GPU, 0 without one."""
    if not torch.cuda.is_available():
        return 0.0
    return torch.cuda.get_device_properties(0).total_memory / 2**30


IMAGE_MODEL = "TurboWan2.2-I2V-A14B-720P"


def real_model_command(gpu_gb: float | None = None, *, image: bool = False) -> str:
    """``turbodiffusion download …`` for a GPU of ``gpu_gb`` GB; default: the first one here.

    ``image`` asks for a model that animates one.
    """
    memory = gpu_memory() if gpu_gb is None else gpu_gb
    name, quantised = next((n, q) for need, n, q in NEEDS_GB if _fits(memory, need))
    if image:
        name, quantised = IMAGE_MODEL, "yes" if prefers_quantised(IMAGE_MODEL, memory) else "no"
    command = f"turbodiffusion download {name} --quantised {quantised}"
    return command if memory else f"{command}   (made for an NVIDIA GPU; none is visible here)"


def prefers_quantised(name: str, gpu_gb: float | None = None) -> bool:
    """Whether the 8-bit file of a model suits the GPU better; without a GPU it is the shorter
    download."""
    return not _fits(gpu_memory() if gpu_gb is None else gpu_gb, UNQUANTISED_GB.get(name, 40))


def _fits(memory: float, need: float) -> bool:
    """A "24 GB" GPU reports a little less."""
    return memory >= need * 0.95
