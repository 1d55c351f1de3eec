"""The block of the DiT as a chain of fused operators, for 8-bit linears.

It computes what :class:`turbodiffusion.models.dit.Block` defines, with every activation that feeds
a linear made in int8 by its producer, and everything that follows a linear done by the product::

    LN · modulate · quantise → QKV product → RMS norm · RoPE of q, k → attention → quantise
    → O product · gate · residual → affine LN · quantise → cross q product → RMS norm
    → attention to the text → quantise → cross O product · residual
    → LN · modulate · quantise → FFN product · GELU · quantise → FFN product · gate · residual

Between the operators fused here values stay float32 where the separate ones round. The two agree to
relative L2 1e-4 in float32. In half precision every rounding moves values across steps of int8, so
they differ by a good part of the error of int8 itself; the fused block is the closer one: of a
small block, 0.71 % from the exact result in bf16 where the separate operators are 0.74 %.

Sizes come from shapes alone and nothing waits for the device, so the chain can be captured in a
CUDA graph after one run, which lays the weights of q, k and v side by side.

Shape letters are those of the DiT; M = B · L.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from turbodiffusion.models.layers import Int8Linear
from turbodiffusion.ops import backend
from turbodiffusion.ops.attention import attention
from turbodiffusion.ops.linear import (
    BLOCK,
    Quantized,
    int8_linear_gelu,
    int8_linear_residual,
    int8_matmul,
    quantize_group,
)
from turbodiffusion.ops.norm import layer_norm_modulate_quantize, layer_norm_quantize

if TYPE_CHECKING:
    from turbodiffusion.models.dit import Block, CrossAttention, SelfAttention, Table, Text

Int8Weights = tuple[Tensor, Tensor, Tensor | None]
"""int8 weight (N, K), its scale (N/128, K/128) and the bias (N,) or None."""


def obstacle(block: Block, device: torch.device) -> str | None:
    """Why ``block`` does not run fused on ``device``, as a sentence; None if it does."""
    if torch.compiler.is_compiling():
        return "The block is being compiled, and the compiler fuses by itself."
    if torch.is_grad_enabled() and block.modulation.requires_grad:
        return "Gradients may be wanted, and 8-bit activations have none."
    own, cross, ffn = block.self_attn, block.cross_attn, block.ffn
    for layer in (own.q, own.k, own.v, own.o, cross.q, cross.o, ffn[0], ffn[2]):
        if type(layer) is not Int8Linear:
            return f"Its linears are {type(layer).__name__}; fused products are for Int8Linear."
        if layer.activation != "group":
            return "Its activations are quantised by tiles, as in the released path."
        if layer.int8_weight.shape[0] % BLOCK:
            return f"A width of {layer.int8_weight.shape[0]} is no multiple of {BLOCK}."
    if len({layer.bias is None for layer in (own.q, own.k, own.v)}) > 1:
        return "Only some of q, k and v have a bias."
    for operator in ("linear", "norm", "rope"):
        choice = backend.resolve(operator, device)
        if choice.backend != "triton":
            return choice.reason
    return None


def forward(block: Block, x_BLD: Tensor, e_B6D: Tensor, table: Table, text: Text) -> Tensor:
    """What ``block(x_BLD, e_B6D, table, text)`` computes; see the module for the differences."""
    m_B6D = block.modulation.float() + e_B6D
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = m_B6D.chunk(6, dim=1)
    own, cross, norm3 = block.self_attn, block.cross_attn, block.norm3

    y_MD = layer_norm_modulate_quantize(x_BLD, scale, shift, block.eps)
    qkv_BLE = _product(y_MD, joined(own.q, own.k, own.v), x_BLD)
    x_BLD = _add(quantize_group(_attend(own, qkv_BLE, table)), own.o, x_BLD, gate)

    y_MD = layer_norm_quantize(x_BLD, norm3.weight, norm3.bias, norm3.eps)
    q_BLD = _product(y_MD, _weights(cross.q), x_BLD)
    x_BLD = _add(quantize_group(_attend_text(cross, q_BLD, text)), cross.o, x_BLD, None)

    y_MD = layer_norm_modulate_quantize(x_BLD, ffn_scale, ffn_shift, block.eps)
    h_MF = int8_linear_gelu(y_MD, *_weights(block.ffn[0]))
    return _add(h_MF, block.ffn[2], x_BLD, ffn_gate)


def _attend(own: SelfAttention, qkv_BLE: Tensor, table: Table) -> Tensor:
    """Self-attention as (M, D), from projections side by side; they are read in place."""
    q_BLD, k_BLD, v_BLD = qkv_BLE.chunk(3, dim=-1)
    q_BLND, k_BLND = own.norm_q(q_BLD, table), own.norm_k(k_BLD, table)
    return own.attend(q_BLND, k_BLND, v_BLD.unflatten(-1, (own.num_heads, -1))).reshape(
        -1, q_BLD.shape[-1]
    )


def _attend_text(cross: CrossAttention, q_BLD: Tensor, text: Text) -> Tensor:
    """Cross-attention as (M, D)."""
    k_BSND, v_BSND = text if isinstance(text, tuple) else cross.keys_values(text)
    q_BLND = cross.norm_q(q_BLD).unflatten(-1, (cross.num_heads, -1))
    return attention(q_BLND, k_BSND, v_BSND).reshape(-1, q_BLD.shape[-1])


def _product(y_MK: Quantized, weights: Int8Weights, x_BLD: Tensor) -> Tensor:
    """(B, L, N) in the dtype of ``x_BLD``, which gives B and L."""
    return int8_matmul(y_MK, *weights, x_BLD.dtype).view(*x_BLD.shape[:2], -1)


def _add(y_MK: Quantized, layer: nn.Module, x_BLD: Tensor, gate_B1D: Tensor | None) -> Tensor:
    """``x + layer(y) · gate``; the gate is rounded, as it is where nothing is fused."""
    gate_B1D = None if gate_B1D is None else gate_B1D.to(x_BLD.dtype)
    return int8_linear_residual(y_MK, *_weights(layer), x_BLD, gate_B1D)


def _weights(layer: nn.Module) -> Int8Weights:
    layer = cast(Int8Linear, layer)
    return layer.int8_weight, layer.scale, layer.bias


def joined(*layers: nn.Module) -> Int8Weights:
    """The weights of layers with one input as those of one layer, their outputs side by side.

    The first call copies them together and leaves the layers with views of the whole: the state
    dict does not change and memory does not grow. Wherever the layers' tensors are replaced, as by
    loading or moving them, the next call does it again.
    """
    weights, scales, biases = zip(*map(_weights, layers), strict=True)
    bias = None if any(b is None for b in biases) else _side_by_side(biases)
    return _side_by_side(weights), _side_by_side(scales), bias


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """One contiguous tensor over ``parts``, which become its slices along the first axis."""
    first, end = parts[0], parts[0].data_ptr()
    adjacent = True
    for part in parts:
        adjacent = adjacent and part.is_contiguous() and part.data_ptr() == end
        end = part.data_ptr() + part.numel() * part.element_size()
    storage = first.untyped_storage()
    if adjacent and end <= storage.data_ptr() + storage.nbytes():
        rows = sum(part.shape[0] for part in parts)
        return first.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())
    with torch.inference_mode(False), torch.no_grad():  # weights stay loadable afterwards
        whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, whole.split([p.shape[0] for p in parts]), strict=True):
        part.data = view
    return whole
