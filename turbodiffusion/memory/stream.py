"""Blocks of a network that pass through the GPU, for a network that does not fit there whole.

Some blocks stay, the others are copied in when their turn comes and dropped after it. While one
computes, the next one is copied on a second stream. The host keeps the weights, in pinned memory
where it can, which is what makes the copies fast and lets them overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


class BlockStream:
    """Runs ``blocks``, which are called in order, through ``device``.

    Args:
        blocks: modules that are called, each once in a forward of their network.
        stay: the first so many are left on the device.
        pin: copy the others' weights into pinned host memory.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], device: torch.device, stay: int, pin: bool = True
    ) -> None:
        self.device = device
        self.stay = stay
        self.passing = list(blocks)[stay:]
        self._pin = pin and device.type == "cuda"
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._host: dict[nn.Module, list[Tensor]] = {}
        self._coming: dict[nn.Module, tuple[list[Tensor], Any]] = {}
        self._hooks: list[Any] = []

    def open(self) -> None:
        """Take the weights of the passing blocks into host memory and watch for their calls."""
        for i, block in enumerate(self.passing):
            host = [t.data for t in tensors(block)]
            self._host[block] = self._pinned(host)
            following = self.passing[(i + 1) % len(self.passing)]
            self._hooks += [
                block.register_forward_pre_hook(self._arrive(block, following)),
                block.register_forward_hook(self._leave(block)),
            ]

    def _pinned(self, host: list[Tensor]) -> list[Tensor]:
        """Copies in pinned memory as long as the system gives it; copies from other memory work
        too, at a part of the speed."""
        if not self._pin:
            return host
        try:
            return [t.pin_memory() for t in host]
        except RuntimeError:
            self._pin = False
            return host

    def close(self) -> None:
        """Stop watching; the weights lie on the host again."""
        for hook in self._hooks:
            hook.remove()
        for block, host in self._host.items():
            _assign(block, host)
        self._hooks, self._host, self._coming = [], {}, {}

    def _arrive(self, block: nn.Module, following: nn.Module) -> Any:
        def hook(*_: Any) -> None:
            if block not in self._coming:  # the first call
                self._coming[block] = self._copy(block)
            copies, event = self._coming.pop(block)
            if event is not None:
                here = torch.cuda.current_stream(self.device)
                here.wait_event(event)
                for tensor in copies:
                    tensor.record_stream(here)
            _assign(block, copies)
            if following is not block and following not in self._coming:
                self._coming[following] = self._copy(following)

        return hook

    def _leave(self, block: nn.Module) -> Any:
        def hook(*_: Any) -> None:
            _assign(block, self._host[block])

        return hook

    def _copy(self, block: nn.Module) -> tuple[list[Tensor], Any]:
        """Start copying a block; the event fires when it is there."""
        if self._stream is None:
            return [t.to(self.device, copy=True) for t in self._host[block]], None
        with torch.cuda.stream(self._stream):
            copies = [t.to(self.device, non_blocking=True) for t in self._host[block]]
            return copies, self._stream.record_event()


def _assign(block: nn.Module, values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors(block), values, strict=True):
        tensor.data = value
