"""Layers with 8-bit weights: what they keep beside their state, and how they are made."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from tests.models.test_dit import SLA, TINY, inputs, quantise, random_network
from tests.ops.forms import error, randn
from turbodiffusion.models import layers
from turbodiffusion.models.layers import Fp8Linear, Int8Linear, Linear, quantize_fp8
from turbodiffusion.ops import backend
from turbodiffusion.ops.linear import dequantize_weight, int8_linear, quantize_weight


def int8_layer(n: int = 200, k: int = 256, seed: int = 0) -> Int8Linear:
    layer = Int8Linear(k, n)
    q, scale = quantize_weight(randn(n, k, seed=seed) / k**0.5)
    layer.load_state_dict({"int8_weight": q, "scale": scale, "bias": randn(n)})
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_on_the_cpu_int8_weights_are_expanded_once(monkeypatch, dtype):
    layer, x = int8_layer(), randn(2, 63, 256, dtype=dtype)
    made = []
    expand = dequantize_weight
    monkeypatch.setattr(
        layers.linears, "dequantize_weight", lambda *args: made.append(args) or expand(*args)
    )
    out = layer(x)
    assert torch.equal(layer(x), out) and out.dtype is dtype
    assert len(made) == 1
    weight = expand(layer.int8_weight, layer.scale)
    expected = x.double() @ weight.double().T + layer.bias.double()
    assert error(out, expected) < (1e-6 if dtype is torch.float32 else 5e-3)
    layer(x.to(torch.float16).float().to(dtype))
    assert len(made) == 1


def test_expanded_weights_follow_the_weights():
    layer, x = int8_layer(), randn(5, 256)
    before = layer(x)
    layer.load_state_dict(int8_layer(seed=1).state_dict())  # copied into the same tensors
    after = layer(x)
    assert error(after, before) > 0.5
    layer.int8_weight = torch.zeros_like(layer.int8_weight)  # replaced
    assert torch.equal(layer(x), layer.bias.expand(5, 200))
    assert layer(x.bfloat16()).dtype is torch.bfloat16
    assert layer.to(torch.float32)._expanded is None


def test_expanded_weights_are_no_part_of_what_is_saved():
    layer, x = int8_layer(), randn(5, 256)
    out = layer(x)
    assert set(layer.state_dict()) == {"int8_weight", "scale", "bias"}
    assert copy.deepcopy(layer)._expanded is None
    file = io.BytesIO()
    torch.save(layer, file)
    assert file.tell() < 2 * layer.int8_weight.numel()
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), out)


def test_released_numerics_and_forced_forms_multiply_in_int8(monkeypatch):
    layer, x = int8_layer(), randn(5, 256)
    parts = layer.int8_weight, layer.scale, layer.bias
    layer.activation = "tile"
    assert torch.equal(layer(x), int8_linear(x, *parts, activation="tile"))
    assert layer._expanded is None
    layer.activation = "group"
    assert not torch.equal(layer(x), int8_linear(x, *parts))
    monkeypatch.setenv(backend.VARIABLE, "portable")
    assert torch.equal(layer(x), int8_linear(x, *parts))


def test_int8_layer_compiles_into_one_graph():
    layer, x = int8_layer(), randn(5, 256)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), layer(x))


def test_fp8_layers_of_both_kinds():
    x = randn(2, 63, 256)
    plain = Linear(256, 200)
    out = Fp8Linear.from_linear(plain)(x)
    assert error(out, plain(x)) < 0.04  # 2^-4/√3 of a step for either operand
    int8 = int8_layer()
    out = Fp8Linear.from_int8(int8)(x.bfloat16())
    assert out.dtype is torch.bfloat16 and error(out, int8(x)) < 0.04
    assert set(Fp8Linear.from_int8(int8).state_dict()) == {"fp8_weight", "scale", "bias"}
    without = Fp8Linear.from_linear(torch.nn.Linear(256, 8, bias=False))
    assert without(x).shape == (2, 63, 8) and without.bias is None


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int8"])
@torch.no_grad()
def test_fp8_network(quantized):
    network, arguments = random_network(TINY, SLA, std=0.05), inputs(TINY)
    expected = network(**arguments)
    if quantized:
        network = quantise(network)
    assert quantize_fp8(network) == TINY.num_layers * 10
    assert 1e-3 < error(network(**arguments), expected) < 0.06
    block = network.blocks[1]
    assert type(block.ffn[2]) is type(block.self_attn.q) is Fp8Linear
    assert type(block.self_attn.attn_op["local_attn"].proj_l) is Linear
    assert type(network.patch_embedding) is Linear
