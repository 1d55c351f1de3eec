"""A float32 copy of a network that computes in bfloat16, to take derivatives from.

In bfloat16 the error of a derivative along a direction is several times that of the network's
value, and the consistency loss divides by small angles. A small network affords one pass in
float32 with TF32 products: the copy takes over the float32 masters before it is asked, and is
neither sharded nor compiled, since a compiled graph carries no tangents.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class ExactCopy:
    """``copy`` with the weights of ``network``, whose parameters may be shards.

    Args:
        copy: of the same names and shapes, float32, on the device of ``network``.
    """

    def __init__(self, copy: nn.Module, network: nn.Module) -> None:
        self.copy = copy.requires_grad_(False)
        sources = dict(network.named_parameters())
        self.pairs = [(p, sources[name]) for name, p in self.copy.named_parameters()]

    @contextmanager
    def opened(self) -> Iterator[nn.Module]:
        """The copy as of now, in a context that lets products be TF32."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield self.updated()
        finally:
            torch.set_float32_matmul_precision(before)

    @torch.no_grad()
    def updated(self) -> nn.Module:
        """The copy as of now; all processes call it together."""
        sources: list[Tensor] = [
            p.full_tensor() if isinstance(p, DTensor) else p for _, p in self.pairs
        ]
        torch._foreach_copy_([p for p, _ in self.pairs], sources)
        return self.copy
