"""Which module is on the compute device, when not all of them fit there at once.

A run uses the text encoder, one expert after the other, and the VAE, never two together; so on a
GPU that cannot hold them all, each is moved in when its turn comes and the others move out.
"""

from __future__ import annotations

import torch
from torch import nn

RESERVE = 0.35
"""Share of the free memory that is kept for activations when deciding whether all modules fit."""


def module_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


class Residency:
    """Moves modules between the host and ``device``.

    Args:
        device: where modules compute.
        swap: keep only the module in use there. ``None`` decides by the free memory when the
            first module is asked for; on the CPU nothing ever moves.
    """

    def __init__(self, device: torch.device, swap: bool | None = None) -> None:
        self.device = device
        self.swap = swap
        self.modules: list[nn.Module] = []

    def register(self, module: nn.Module) -> None:
        """Let this room move ``module``."""
        self.modules.append(module)

    def forget(self, module: nn.Module) -> None:
        """Stop moving ``module``, so that its memory can be given back."""
        self.modules = [m for m in self.modules if m is not module]

    def _decide(self) -> bool:
        free, _ = torch.cuda.mem_get_info(self.device)
        return sum(module_bytes(m) for m in self.modules) > (1 - RESERVE) * free

    def use(self, module: nn.Module) -> nn.Module:
        """``module`` on the device, after making room for it."""
        if self.device.type != "cuda":
            return module
        if self.swap is None:
            self.swap = self._decide()
        if self.swap:
            for other in self.modules:
                if other is not module:
                    other.to("cpu")
            torch.cuda.empty_cache()
        return module.to(self.device)
