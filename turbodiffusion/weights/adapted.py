"""Networks with LoRAs added, as streams: only a stripe of a weight and its thin matrices are in
memory."""

from __future__ import annotations

import torch
from torch import Tensor

from turbodiffusion.errors import WeightsError
from turbodiffusion.weights.header import Header
from turbodiffusion.weights.lora import Change, LoRA
from turbodiffusion.weights.stream import Tensors, read_elements


class Adapted:
    """``base + Σ strength · change`` as a stream, added in float32 and rounded once.

    Raises:
        WeightsError: the base is quantised.
    """

    def __init__(self, base: Tensors, loras: list[tuple[LoRA, float]]) -> None:
        if any(name.endswith(".int8_weight") for name in base.spec):
            raise WeightsError(
                "lora-quantized",
                "The base has int8 linears, to which a LoRA cannot be added exactly.",
                "Merge it into the unquantised file, then run `turbodiffusion quantize`.",
            )
        self.base, self.loras = base, loras
        self.spec, self.metadata = base.spec, base.metadata

    def lines(self) -> list[str]:
        """For people."""
        rows = []
        for lora, strength in self.loras:
            rows += [lora.line(strength), *(f"unused   {text}" for text in lora.leftovers())]
        return rows

    def elements(self, name: str, start: int, stop: int) -> Tensor:
        values = self.base.elements(name, start, stop)
        changes = [(lora.header, change, strength) for lora, strength in self.loras
                   for change in lora.changes.get(name, ())]  # fmt: skip
        if not changes:
            return values
        total = values.float()
        for header, change, strength in changes:
            columns = self.spec[name].elements // max(1, self.spec[name].shape[0])
            total += strength * change.scale * _change(header, change, columns, start, stop)
        return total.to(values.dtype)


def _change(header: Header, change: Change, columns: int, start: int, stop: int) -> Tensor:
    """Elements of a change without its factors, float32."""
    if not change.down:
        return read_elements(header, change.up, start, stop).float()
    info = header.tensors[change.down]
    rank = info.shape[0]
    first, last = start // columns, -(-stop // columns)  # whole rows
    up = read_elements(header, change.up, first * rank, last * rank).float().reshape(-1, rank)
    down = read_elements(header, change.down, 0, info.elements).float().reshape(rank, -1)
    rows: Tensor = torch.mm(up, down).flatten()
    return rows[start - first * columns : stop - first * columns]
