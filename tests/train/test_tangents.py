"""Derivatives through the real network: both ways, and differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import CARDS, Attention
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.ops import dual
from turbodiffusion.train.tangents import jvp

CONFIG = replace(CARDS["micro-teacher"].dit, dim=64, ffn_dim=128, num_heads=2, num_layers=2)


def network(attention=Attention("dense"), dtype=torch.float32, condition=0):  # noqa: B008
    torch.manual_seed(0)
    made = WanDiT(replace(CONFIG, in_dim=CONFIG.out_dim + condition), attention)
    made.init_weights()
    torch.nn.init.normal_(made.head.head.weight, std=0.1)
    return made.to(dtype)


def inputs(dtype=torch.float32):
    torch.manual_seed(1)
    x, moved = (torch.randn(2, CONFIG.out_dim, 2, 8, 8).to(dtype) for _ in range(2))
    t, faster = 200 + 500 * torch.rand(2, 1), 10 * torch.rand(2, 1)
    return (x, t), (moved, faster), torch.randn(2, 5, CONFIG.text_dim).to(dtype)


def error(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_ways_agree_with_each_other_and_with_differences():
    made, (at, along, text) = network(), inputs()

    def function(x, t):
        return made(x, t, text)

    whole, streamed = (jvp(function, at, along, way) for way in ("whole", "dual"))
    assert error(streamed[0], whole[0]) < 2e-6 and error(streamed[1], whole[1]) < 2e-6
    h = 1e-2
    with torch.no_grad():
        torch.testing.assert_close(streamed[0], function(*at))
        ahead, behind = (
            function(*(p + s * h * d for p, d in zip(at, along, strict=True))) for s in (1, -1)
        )
    assert error(streamed[1], (ahead - behind) / (2 * h)) < 5e-4
    assert not any(x.requires_grad for x in (*whole, *streamed))


def test_time_and_latents_both_count():
    made, (at, along, text) = network(), inputs()
    full, of_x, of_t = (
        jvp(lambda x, t: made(x, t, text), at, direction)[1]
        for direction in (
            along,
            (along[0], torch.zeros_like(along[1])),
            (torch.zeros_like(along[0]), along[1]),
        )
    )
    assert error(of_x + of_t, full) < 1e-5
    assert min(of_x.norm(), of_t.norm()) > 1e-3 * full.norm()


def test_an_image_condition_stands_still():
    made, (at, along, text) = network(condition=3), inputs()
    y = torch.randn(2, 3, 2, 8, 8)
    pair = [jvp(lambda x, t: made(x, t, text, y), at, along, way)[1] for way in ("whole", "dual")]
    assert error(pair[1], pair[0]) < 2e-6


def test_bf16_network():
    at, along, text = inputs(torch.bfloat16)
    made, exact = network(dtype=torch.bfloat16), network()
    found = jvp(lambda x, t: made(x, t, text), at, along)[1]
    wide = [(x.float(), t) for x, t in (at, along)]
    wanted = jvp(lambda x, t: exact(x, t, text.float()), *wide)[1]
    assert error(found, wanted) < 0.03


def test_recomputed_and_hooked_modules_pass_through():
    from turbodiffusion.parallel.activations import recompute_activations

    made, (at, along, text) = network(), inputs()
    plain = jvp(lambda x, t: made(x, t, text), at, along)[1]
    recompute_activations(made, mode="block")
    calls = []
    for block in made.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    assert torch.equal(jvp(lambda x, t: made(x, t, text), at, along)[1], plain)
    assert len(calls) == len(made.blocks)


def test_sparse_attention_has_none():
    made = network(Attention("sla", 0.5, 16, 16))
    at, along, text = inputs()
    with pytest.raises(UsageError, match="Sparse attention"):
        jvp(lambda x, t: made(x, t, text), at, along)
    assert not dual.active() and not dual.streams()


@pytest.mark.parametrize("way", ["whole", "dual"])
def test_a_function_of_nothing_stands_still(way):
    at, along, _ = inputs()
    value, moved = jvp(lambda x, t: torch.ones(3), at, along, way)
    assert torch.equal(value, torch.ones(3)) and torch.equal(moved, torch.zeros(3))


def test_unknown_way():
    at, along, _ = inputs()
    with pytest.raises(UsageError, match="whole or dual"):
        jvp(lambda x, t: x, at, along, "both")
