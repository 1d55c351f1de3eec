"""The complete tensor list of each network, computed from its configuration.

Names, shapes and element types of the released files, without torch: what a file must hold, how
large it is, and what :mod:`.synthetic` writes. Sources: the released Wan and TurboDiffusion
checkpoints (885 / 1175 tensors unquantised with the SLA projection, 1185 / 1575 quantised).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from turbodiffusion.models.cards import DiTConfig, TextEncoderConfig, VAEConfig
from turbodiffusion.weights.dtypes import BY_NAME

QUANT_BLOCK = 128
PROJ_L = "attn_op.local_attn.proj_l"


class TensorSpec(NamedTuple):
    """Shape and element type (a torch name) of one tensor of a released file."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * BY_NAME[self.dtype].itemsize


Spec = dict[str, TensorSpec]


def spec_bytes(spec: Mapping[str, TensorSpec]) -> int:
    """Bytes of all tensors of a specification."""
    return sum(tensor.nbytes for tensor in spec.values())


def dit_spec(config: DiTConfig, quantized: bool = False, sla: bool = True) -> Spec:
    """Tensors of a DiT file: bf16 weights, fp32 norms; ten int8 linears a block if quantised.

    ``sla`` adds the projection of the linear attention branch, which released files hold and
    plain Wan files do not.
    """
    d, f, bf16 = config.dim, config.ffn_dim, "bfloat16"
    spec: Spec = {}

    def linear(name: str, out: int, into: int, int8: bool = False) -> None:
        if int8:
            spec[f"{name}.int8_weight"] = TensorSpec((out, into), "int8")
            scale = (-(-out // QUANT_BLOCK), -(-into // QUANT_BLOCK))
            spec[f"{name}.scale"] = TensorSpec(scale, "float32")
        else:
            spec[f"{name}.weight"] = TensorSpec((out, into), bf16)
        spec[f"{name}.bias"] = TensorSpec((out,), bf16)

    linear("patch_embedding", d, config.in_dim * config.patch_volume)
    linear("text_embedding.0", d, config.text_dim)
    linear("text_embedding.2", d, d)
    linear("time_embedding.0", d, config.freq_dim)
    linear("time_embedding.2", d, d)
    linear("time_projection.1", 6 * d, d)
    for i in range(config.num_layers):
        block = f"blocks.{i}"
        spec[f"{block}.modulation"] = TensorSpec((1, 6, d), bf16)
        for part in ("self_attn", "cross_attn"):
            for name in "qkvo":
                linear(f"{block}.{part}.{name}", d, d, quantized)
            for name in ("norm_q", "norm_k"):
                spec[f"{block}.{part}.{name}.weight"] = TensorSpec((d,), "float32")
        if sla:
            linear(f"{block}.self_attn.{PROJ_L}", config.head_dim, config.head_dim)
        for name in ("weight", "bias"):
            spec[f"{block}.norm3.{name}"] = TensorSpec((d,), "float32")
        linear(f"{block}.ffn.0", f, d, quantized)
        linear(f"{block}.ffn.2", d, f, quantized)
    spec["head.modulation"] = TensorSpec((1, 2, d), bf16)
    linear("head.head", config.out_dim * config.patch_volume, d)
    return spec


def vae_spec(config: VAEConfig, dtype: str = "float32") -> Spec:
    """Tensors of a VAE file (194 for the Wan VAE, all fp32)."""
    return {name: TensorSpec(shape, dtype) for name, shape in _vae_shapes(config)}


def _vae_shapes(config: VAEConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    widths = [config.dim * m for m in config.dim_mult]
    z = config.z_dim
    yield from _conv("encoder.conv1", config.dim, 3, 3, 3, 3)
    index, width = 0, config.dim
    for stage, out in enumerate(widths):
        for _ in range(config.num_res_blocks):
            yield from _residual(f"encoder.downsamples.{index}", width, out)
            index, width = index + 1, out
        if stage < len(widths) - 1:
            name = f"encoder.downsamples.{index}"
            yield from _conv(f"{name}.resample.1", out, out, 3, 3)
            if config.temporal_downsample[stage]:
                yield from _conv(f"{name}.time_conv", out, out, 3, 1, 1)
            index += 1
    yield from _middle("encoder", width)
    yield from _head("encoder", width, 2 * z)
    yield from _conv("conv1", 2 * z, 2 * z, 1, 1, 1)
    yield from _conv("conv2", z, z, 1, 1, 1)
    yield from _conv("decoder.conv1", width, z, 3, 3, 3)
    yield from _middle("decoder", width)
    index = 0
    for stage, out in enumerate(reversed(widths)):
        for _ in range(config.num_res_blocks + 1):
            yield from _residual(f"decoder.upsamples.{index}", width, out)
            index, width = index + 1, out
        if stage < len(widths) - 1:
            name = f"decoder.upsamples.{index}"
            yield from _conv(f"{name}.resample.1", out // 2, out, 3, 3)
            if config.temporal_downsample[-1 - stage]:
                yield from _conv(f"{name}.time_conv", 2 * out, out, 3, 1, 1)
            index, width = index + 1, out // 2
    yield from _head("decoder", width, 3)


def _conv(name: str, out: int, *rest: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, *rest)
    yield f"{name}.bias", (out,)


def _residual(name: str, into: int, out: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.residual.0.gamma", (into, 1, 1, 1)
    yield from _conv(f"{name}.residual.2", out, into, 3, 3, 3)
    yield f"{name}.residual.3.gamma", (out, 1, 1, 1)
    yield from _conv(f"{name}.residual.6", out, out, 3, 3, 3)
    if into != out:
        yield from _conv(f"{name}.shortcut", out, into, 1, 1, 1)


def _middle(side: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _residual(f"{side}.middle.0", width, width)
    yield f"{side}.middle.1.norm.gamma", (width, 1, 1)
    yield from _conv(f"{side}.middle.1.to_qkv", 3 * width, width, 1, 1)
    yield from _conv(f"{side}.middle.1.proj", width, width, 1, 1)
    yield from _residual(f"{side}.middle.2", width, width)


def _head(side: str, width: int, out: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{side}.head.0.gamma", (width, 1, 1, 1)
    yield from _conv(f"{side}.head.2", out, width, 3, 3, 3)


def text_spec(config: TextEncoderConfig, dtype: str = "bfloat16") -> Spec:
    """Tensors of a umT5 encoder file (242 for umT5-xxl, all bf16)."""
    d, inner, f = config.dim, config.num_heads * config.head_dim, config.ffn_dim
    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (config.vocab_size, d)}
    for i in range(config.num_layers):
        block = f"blocks.{i}"
        shapes[f"{block}.norm1.weight"] = (d,)
        for name in "qkv":
            shapes[f"{block}.attn.{name}.weight"] = (inner, d)
        shapes[f"{block}.attn.o.weight"] = (d, inner)
        shapes[f"{block}.norm2.weight"] = (d,)
        shapes[f"{block}.ffn.gate.0.weight"] = (f, d)
        shapes[f"{block}.ffn.fc1.weight"] = (f, d)
        shapes[f"{block}.ffn.fc2.weight"] = (d, f)
        bias = (config.num_buckets, config.num_heads)
        shapes[f"{block}.pos_embedding.embedding.weight"] = bias
    shapes["norm.weight"] = (d,)
    return {name: TensorSpec(shape, dtype) for name, shape in shapes.items()}
