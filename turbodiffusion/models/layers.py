"""Layers with parameters, through the operators; shared by the blocks of the DiT.

They only hold weights under the released names and hand them to :mod:`turbodiffusion.ops`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from turbodiffusion.ops import linear as linears
from turbodiffusion.ops.norm import layer_norm, rms_norm
from turbodiffusion.ops.rope import rms_norm_rope


class Linear(nn.Linear):
    """A linear layer through the operator."""

    def forward(self, x: Tensor) -> Tensor:
        return linears.linear(x, self.weight, self.bias)

    def float32(self, x: Tensor) -> Tensor:
        """The same layer with input and weights cast up, for the parts that stay float32."""
        return linears.linear(x.float(), self.weight.float(), self.bias.float())


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and activations, in the layout of the ``-quant`` files.

    ``activation`` is the granularity of :func:`turbodiffusion.ops.linear.int8_linear`: ``group``
    for the smaller error, ``tile`` for the numerics of the released kernels on every device.

    Where int8 products are no faster than others, ``group`` takes the int8 weights as storage:
    they are expanded to the dtype of the activations, which are not quantised, so the result is
    more exact. On the CPU the expanded weights are kept between calls: 2 bytes a weight in bf16
    beside the one of int8, taken when first used and never part of the state dict.
    """

    int8_weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.activation: linears.Activation = "group"
        blocks = -(-out_features // linears.BLOCK), -(-in_features // linears.BLOCK)
        weight = torch.zeros(out_features, in_features, dtype=torch.int8)
        self.register_buffer("int8_weight", weight)
        self.register_buffer("scale", torch.ones(blocks))
        self.register_buffer("bias", torch.zeros(out_features))
        self._expanded: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.activation == "group" and not linears.has_int8(x.device):
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return linears.linear(x, self.expanded(x.dtype), bias)
        return linears.int8_linear(
            x, self.int8_weight, self.scale, self.bias, activation=self.activation
        )

    def expanded(self, dtype: torch.dtype) -> Tensor:
        """The weights in ``dtype``, (out, in); on the CPU the same tensor as the last time."""
        sources = self.int8_weight, self.scale
        if self._expanded is not None:
            *made_of, weight = self._expanded
            same = all(a is b for a, b in zip(made_of, sources, strict=True))
            if same and weight.dtype is dtype:
                return weight
        weight = linears.dequantize_weight(*sources, dtype)
        self._expanded = (*sources, weight) if weight.device.type == "cpu" else None
        return weight

    def _load_from_state_dict(self, *args: Any) -> None:
        self._expanded = None
        super()._load_from_state_dict(*args)

    def _apply(self, *args: Any, **kwargs: Any) -> Int8Linear:
        self._expanded = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_expanded": None}


class Fp8Linear(nn.Module):
    """A linear layer with weights and activations in e4m3, made of another layer.

    For GPUs of capability 8.9 and newer (:func:`turbodiffusion.ops.gpu.has_fp8`); it computes the
    same elsewhere, slowly. There are no files of this layout.
    """

    fp8_weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight_NK: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        fp8_weight, scale = linears.quantize_fp8(weight_NK)
        self.register_buffer("fp8_weight", fp8_weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    @classmethod
    @torch.no_grad()
    def from_linear(cls, layer: nn.Linear) -> Fp8Linear:
        """Quantise the weights of an unquantised layer; its bias is kept as it is."""
        return cls(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())

    @classmethod
    @torch.no_grad()
    def from_int8(cls, layer: Int8Linear) -> Fp8Linear:
        """Quantise the weights that the int8 ones stand for; both errors add up."""
        return cls(linears.dequantize_weight(layer.int8_weight, layer.scale), layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return linears.fp8_linear(x, self.fp8_weight, self.scale, self.bias)


def quantize_fp8(network: nn.Module) -> int:
    """Replace the linears of ``network.blocks`` by :class:`Fp8Linear`, in place.

    ``proj_l`` stays, as in the quantised files, and so does a layer with an input width that is no
    multiple of 128. The layers are replaced one by one, so the peak is one layer above the larger
    of both sizes. A network changed so can run, but neither be trained nor saved as a checkpoint.

    Returns:
        The number of replaced layers.
    """
    parents = [m for block in network.get_submodule("blocks").children() for m in block.modules()]
    replaced = 0
    for parent in parents:
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Int8Linear):
                setattr(parent, name, Fp8Linear.from_int8(layer))
            elif (
                isinstance(layer, Linear)
                and name != "proj_l"
                and layer.in_features % linears.BLOCK == 0
            ):
                setattr(parent, name, Fp8Linear.from_linear(layer))
            else:
                continue
            replaced += 1
    return replaced


class RMSNorm(nn.Module):
    """RMS norm of a whole token, all heads together."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class HeadNorm(nn.Module):
    """RMS norm of a whole token, then the rotation of each head by the place of the token."""

    def __init__(self, dim: int, eps: float, num_heads: int) -> None:
        super().__init__()
        self.eps, self.num_heads = eps, num_heads
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_BLD: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        return rms_norm_rope(x_BLD, self.weight, table, self.eps, self.num_heads)


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
