"""The row of a whole forward pass: random weights, int8 linears, 8-bit sparse attention.

Its share is that of the floor: the sum over the fused kernels of the least time that each needs on
the measured ceilings (:func:`turbodiffusion.bench.shapes.floor_seconds`). Text keys and values are
computed once a prompt and given. The rival is the unaccelerated network, bf16 and dense, in the
same run, where it takes less than ``LONGEST_RIVAL`` by its own floor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from turbodiffusion.bench.cases import Case, Contest, Error, Setting, compare
from turbodiffusion.bench.shapes import (
    Geometry,
    Shape,
    cross_flops,
    dense_flops,
    embedding_flops,
    floor_seconds,
    linear_flops,
    sparse_flops,
)
from turbodiffusion.bench.timing import Call
from turbodiffusion.models.cards import Attention, DiTConfig
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.models.layers import Int8Linear
from turbodiffusion.ops import backend

LONGEST_RIVAL = 1.5  # seconds
CHECKED_GRID = (2, 6, 8)
CHECKED_LAYERS = 2
"""Small, because the naive quantiser goes group by group: seconds at 96 tokens of a 14B network."""


def cases(s: Shape, g: Geometry) -> list[Case]:
    """The one row of a shape."""
    flops = s.layers * (linear_flops(s) + sparse_flops(s, g) + cross_flops(s)) + embedding_flops(s)
    return [
        Case(
            "forward", "", s, "8-bit", flops, 0, lambda x: _forward(s, x), queued=False,
            floor=lambda rates: floor_seconds(s, g, rates),
        )
    ]  # fmt: skip


def _config(s: Shape, layers: int | None = None) -> DiTConfig:
    return replace(
        s.card.dit, dim=s.dim, ffn_dim=s.ffn_dim, num_heads=s.heads, num_layers=layers or s.layers
    )


def random_network(config: DiTConfig, attention: Attention, quantized: bool, x: Setting) -> WanDiT:
    """A network of bf16 and, where ``quantized``, int8 weights of a size that keeps values finite.

    It is filled on the device: a 14B network would take minutes on the host.
    """
    with torch.device(x.device):
        network = WanDiT(config, attention, quantized=quantized)
    generator = torch.Generator(x.device).manual_seed(0)
    for module in network.modules():
        if isinstance(module, Int8Linear):
            module.activation = "group"
            module.int8_weight.random_(-127, 128, generator=generator)
            # Integers of that range have a deviation of 73.
            module.scale.fill_(1 / (73 * module.int8_weight.shape[1] ** 0.5))
            if module.bias is not None:
                module.bias = module.bias.to(x.dtype)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 2:
            width = parameter.shape[1] ** 0.5
            parameter.data.normal_(0, 1 / width, generator=generator)
        keep = name.endswith("modulation")
        parameter.data = parameter.data if keep else parameter.data.to(x.dtype)
        parameter.requires_grad_(False)
    return network.eval()


def _inputs(s: Shape, config: DiTConfig, grid: tuple[int, int, int], x: Setting) -> list[Tensor]:
    (pt, ph, pw), (t, h, w) = config.patch, grid
    latents = x.randn(1, config.in_dim, t * pt, h * ph, w * pw).float()
    context = x.randn(1, config.text_len, config.text_dim, seed=1, scale=0.1)
    return [latents, torch.full((1, 1), 500.0, device=x.device), context]


def _attention(s: Shape, x: Setting, kind: str) -> Attention:
    g = x.geometry
    settings = s.card.attention.with_topk(g.topk)
    return replace(settings, kind=kind, block_q=g.block_q, block_k=g.block_k)  # type: ignore[arg-type]


def _call(network: WanDiT, inputs: list[Tensor]) -> Call:
    latents, time, context = inputs
    with torch.no_grad():
        text = network.text_kv(context)

    def call() -> Tensor:
        with torch.no_grad():
            return network(latents, time, text_kv=text)

    return call


def _forward(s: Shape, x: Setting) -> Contest:
    config = _config(s)
    inputs = _inputs(s, config, s.grid, x)
    ours = _call(random_network(config, _attention(s, x, "sagesla"), True, x), inputs)
    rivals: dict[str, Call] = {}
    flops = s.layers * (linear_flops(s) + dense_flops(s) + cross_flops(s))
    if flops / x.rates["bf16"] < LONGEST_RIVAL:
        plain = random_network(config, _attention(s, x, "dense"), False, x)
        rivals["bf16 dense"] = _portable(_call(plain, inputs))
    return Contest(ours, rivals, lambda: _error(s, x), backend.resolve("sage", x.device).backend)


def _portable(call: Call) -> Call:
    """The same call on the portable forms: the vendor's products, attention and norms."""

    def run() -> object:
        with forced("portable"):
            return call()

    return run


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Have every operator run the form ``name``."""
    before = os.environ.get(backend.VARIABLE)
    os.environ[backend.VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[backend.VARIABLE]
        else:
            os.environ[backend.VARIABLE] = before


def _error(s: Shape, x: Setting) -> Error:
    """Two blocks of the same width on a short clip against the naive forms.

    Sparse 8-bit attention keeps all blocks there: with random weights the scores of blocks are
    noise, and two right implementations would keep different ones.
    """
    config = _config(s, min(CHECKED_LAYERS, s.layers))
    attention = replace(_attention(s, x, "sagesla"), topk=1.0)
    network = random_network(config, attention, True, x)
    call = _call(network, _inputs(s, config, CHECKED_GRID, x))
    actual = call()
    with forced("naive"):
        expected = call()
    assert isinstance(actual, Tensor) and isinstance(expected, Tensor)
    t, h, w = CHECKED_GRID
    how = f"of {config.num_layers} blocks at {t * h * w} tokens against the naive forms"
    return compare(actual, expected, how)
