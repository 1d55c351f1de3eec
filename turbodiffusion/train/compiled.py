"""Blocks fused by ``torch.compile``, one after the other so that all share one compilation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch._dynamo
from torch import nn


def compile_modules(modules: Iterable[nn.Module]) -> None:
    """Compile each in place, for fixed shapes.

    What the compiler cannot take runs as it is written, with the compiler's own warning.
    """
    torch._dynamo.config.suppress_errors = True
    for module in modules:
        module.compile(dynamic=False)


def compile_network(network: nn.Module) -> None:
    """Compile the blocks and the head of a DiT; its sparse attention stays outside the graphs."""
    blocks = list(network.get_submodule("blocks").children())
    for block in blocks:
        own = block.get_submodule("self_attn")
        if own.attn_op is not None:
            own.attend = torch.compiler.disable(own.attend)  # type: ignore[assignment]
    compile_modules([*blocks, network.get_submodule("head")])
