"""int8 weights in the layout of the released ``-quant`` files.

Ten linears of each block become an int8 matrix and a float32 scale per block of 128 × 128:
``scale = amax/128``, ``q = sat(round_half_even(x·128/amax))`` of the bf16 weight
(:func:`turbodiffusion.ops.linear.quantize_tile`). Everything else takes the released type.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from turbodiffusion.errors import WeightsError
from turbodiffusion.ops.linear import quantize_tile
from turbodiffusion.weights.spec import QUANT_BLOCK, Spec, TensorSpec
from turbodiffusion.weights.stream import Converted, Tensors, stripes

QUANTIZED = re.compile(r"blocks\.\d+\.(self_attn\.[qkvo]|cross_attn\.[qkvo]|ffn\.[02])\.weight")
"""The weights that become int8."""


class Quantized:
    """``source`` with int8 linears.

    Args:
        source: a DiT with floating weights.

    Raises:
        WeightsError: it is quantised already.
    """

    def __init__(self, source: Tensors) -> None:
        if any(name.endswith(".int8_weight") for name in source.spec):
            raise WeightsError(
                "quantize-twice",
                "The checkpoint has int8 linears already.",
                "Give the unquantised file; rounding twice would lose quality.",
            )
        self.source, self.metadata = Converted(source), source.metadata
        self.spec: Spec = {}
        for name, one in self.source.spec.items():
            if QUANTIZED.fullmatch(name):
                layer = name.removesuffix(".weight")
                out, into = one.shape
                grid = -(-out // QUANT_BLOCK), -(-into // QUANT_BLOCK)
                self.spec[f"{layer}.int8_weight"] = TensorSpec(one.shape, "int8")
                self.spec[f"{layer}.scale"] = TensorSpec(grid, "float32")
            else:
                self.spec[name] = one

    def elements(self, name: str, start: int, stop: int) -> Tensor:
        layer, _, kind = name.rpartition(".")
        weight = f"{layer}.weight"
        if kind == "int8_weight":
            block = QUANT_BLOCK * self.spec[name].shape[1]
            first = start // block * block
            last = min(-(-stop // block) * block, self.spec[name].elements)
            q, _ = self._tiles(weight, first, last)
            return q.flatten()[start - first : stop - first]
        if kind == "scale" and name not in self.source.spec:
            scales = [self._tiles(weight, *stripe)[1] for stripe in self._stripes(weight)]
            return torch.cat(scales).flatten()[start:stop]
        return self.source.elements(name, start, stop)

    def _stripes(self, weight: str) -> list[tuple[int, int]]:
        return list(stripes(self.source.spec[weight]))

    def _tiles(self, weight: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
        columns = self.source.spec[weight].shape[1]
        return quantize_tile(self.source.elements(weight, start, stop).reshape(-1, columns))
