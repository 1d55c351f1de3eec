"""Which module is on the compute device, when not all of them fit there at once.

A run uses the text encoder, one expert after the other, and the VAE, never two together; so on a
GPU that cannot hold them all, each is moved in when its turn comes and the others move out. One
that does not fit there by itself is streamed block by block (:mod:`.stream`). Weights never change
during a run, so moving out only drops the copy on the device: the tensors on the host,
memory-mapped files as a rule, are kept and put back in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from turbodiffusion.memory.stream import BlockStream, tensors

RESERVE = 0.35
"""Share of the free memory that is kept for activations when deciding whether all modules fit."""


def module_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in tensors(module))


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
        self._streams: dict[nn.Module, BlockStream] = {}

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
        if stream := self._streams.pop(module, None):
            stream.close()

    def stream(self, module: nn.Module, blocks: Sequence[nn.Module], stay: int) -> None:
        """From its next use on, let ``blocks`` of ``module`` pass through the device but for the
        first ``stay``, because it does not fit there whole."""
        if module in self._resident:
            self._evict(module)
        self._streams[module] = BlockStream(blocks, self.device, stay)

    def streams(self, module: nn.Module) -> bool:
        """Whether blocks of ``module`` pass through the device."""
        return module in self._streams

    def staying(self, module: nn.Module) -> int | None:
        """How many blocks of a streamed module stay on the device; None if it is not streamed."""
        return self._streams[module].stay if module in self._streams else None

    def release(self, module: nn.Module) -> None:
        """Move ``module`` out until its next use."""
        if module in self._resident:
            self._evict(module)

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
        self._host[module] = [t.data for t in tensors(module)]
        if stream := self._streams.get(module):
            stream.open()
            passing = {id(t) for block in stream.passing for t in tensors(block)}
            for tensor in tensors(module):
                if id(tensor) not in passing:
                    tensor.data = tensor.data.to(self.device)
        else:
            module.to(self.device)
        self._resident.add(module)

    def _is_here(self, module: nn.Module) -> bool:
        first = next(tensors(module), None)
        if first is None or first.device.type != self.device.type:
            return first is None
        return self.device.index is None or first.device.index == self.device.index

    def _evict(self, module: nn.Module) -> None:
        host = self._host.pop(module, None)
        if stream := self._streams.get(module):
            stream.close()
        if host is None:  # it was loaded on the device
            module.to("cpu")
        else:
            for tensor, original in zip(tensors(module), host, strict=True):
                tensor.data = original
        self._resident.discard(module)

    def _decide(self) -> bool:
        if self.device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self.device)
        missing = [m for m in self.modules if m not in self._resident]
        return sum(module_bytes(m) for m in missing) > (1 - RESERVE) * free
