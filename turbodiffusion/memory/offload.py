"""Which module is on the compute device, when not all of them fit there at once.

A run uses the text encoder, one expert after the other, and the VAE, never two together; so on a
GPU that cannot hold them all, each is moved in when its turn comes and the others move out. Weights
never change during a run, so moving out only drops the copy on the device: the tensors on the host,
memory-mapped files as a rule, are kept and put back in place.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

RESERVE = 0.35
"""Share of the free memory that is kept for activations when deciding whether all modules fit."""


def module_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in _tensors(module))


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


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
        self._resident: set[nn.Module] = set()
        self._host: dict[nn.Module, list[Tensor]] = {}

    def register(self, module: nn.Module) -> None:
        """Let this room move ``module``, whose tensors are all on one device."""
        self.modules.append(module)
        if self._is_here(module):
            self._resident.add(module)

    def forget(self, module: nn.Module) -> None:
        """Stop moving ``module``, so that its memory can be given back."""
        self.modules = [m for m in self.modules if m is not module]
        self._resident.discard(module)
        self._host.pop(module, None)

    def use(self, module: nn.Module) -> None:
        """Have ``module`` on the device, after making room for it. Free when it is there."""
        if module in self._resident:
            return
        if self.swap is None:
            self.swap = self._decide()
        if self.swap:
            for other in [m for m in self._resident if m is not module]:
                self._evict(other)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self._host[module] = [t.data for t in _tensors(module)]
        module.to(self.device)
        self._resident.add(module)

    def _is_here(self, module: nn.Module) -> bool:
        first = next(_tensors(module), None)
        if first is None or first.device.type != self.device.type:
            return first is None
        return self.device.index is None or first.device.index == self.device.index

    def _evict(self, module: nn.Module) -> None:
        host = self._host.pop(module, None)
        if host is None:  # it was loaded on the device
            module.to("cpu")
        else:
            for tensor, original in zip(_tensors(module), host, strict=True):
                tensor.data = original
        self._resident.discard(module)

    def _decide(self) -> bool:
        if self.device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self.device)
        missing = [m for m in self.modules if m not in self._resident]
        return sum(module_bytes(m) for m in missing) > (1 - RESERVE) * free
