"""Layers with parameters, through the operators; shared by the blocks of the DiT.

They only hold weights under the released names and hand them to :mod:`turbodiffusion.ops`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turbodiffusion.ops import linear as linears
from turbodiffusion.ops.norm import layer_norm, rms_norm


class Linear(nn.Linear):
    """A linear layer through the operator."""

    def forward(self, x: Tensor) -> Tensor:
        return linears.linear(x, self.weight, self.bias)

    def float32(self, x: Tensor) -> Tensor:
        """The same layer with input and weights cast up, for the parts that stay float32."""
        return linears.linear(x.float(), self.weight.float(), self.bias.float())


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and activations, in the layout of the ``-quant`` files.

    ``activation`` is the granularity of :func:`turbodiffusion.ops.linear.int8_linear`; the default
    is that of the released kernels.
    """

    int8_weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.activation: linears.Activation = "tile"
        blocks = -(-out_features // linears.BLOCK), -(-in_features // linears.BLOCK)
        weight = torch.zeros(out_features, in_features, dtype=torch.int8)
        self.register_buffer("int8_weight", weight)
        self.register_buffer("scale", torch.ones(blocks))
        self.register_buffer("bias", torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return linears.int8_linear(
            x, self.int8_weight, self.scale, self.bias, activation=self.activation
        )


class RMSNorm(nn.Module):
    """RMS norm of a whole token, all heads together."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Layer norm with weight and bias (``norm3``; the other layer norms have no parameters)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class Float32(nn.Sequential):
    """Layers in sequence, each linear in float32 whatever the dtype of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer.float32(x) if isinstance(layer, Linear) else layer(x)
        return x
