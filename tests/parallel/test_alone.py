"""One process computes the same without FSDP as with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import card
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.parallel import ranks
from turbodiffusion.parallel.alone import cast_network
from turbodiffusion.parallel.shard import shard_network, sync_gradients

CARD = card("micro-teacher")


def network() -> WanDiT:
    made = WanDiT(CARD.dit)
    made.init_weights(torch.Generator().manual_seed(1))
    torch.nn.init.normal_(made.head.head.weight, generator=torch.Generator().manual_seed(2))
    return made


def loss(net: torch.nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x, text = (torch.randn(2, *s, generator=generator) for s in ((8, 2, 8, 8), (24, 64)))
    dtype = next(net.parameters()).dtype if not hasattr(net, "compute_dtype") else torch.bfloat16
    out = net(x.bfloat16().to(dtype), torch.tensor([[100.0], [900.0]]), text.bfloat16().to(dtype))
    return out.square().mean()


def test_values_and_gradients_are_those_of_one_shard():
    plain, sharded = network(), network()
    cast_network(plain, dtype=torch.bfloat16)
    sync_gradients(plain, sync=True)
    with_plain = loss(plain)
    with_plain.backward()
    assert all(p.dtype is torch.float32 for p in plain.parameters())
    try:
        group = ranks.start(torch.device("cpu"))
        shard_network(sharded, mesh=group.mesh, dtype=torch.bfloat16)
        with_sharded = loss(sharded)
        with_sharded.backward()
        assert torch.equal(with_plain, with_sharded)
        theirs = {name: p.grad.full_tensor() for name, p in sharded.named_parameters()}
    finally:
        ranks.leave()
    exact = network()
    loss(exact.float()).backward()
    for name, right in exact.named_parameters():
        p = plain.get_parameter(name)
        assert p.grad.dtype is torch.float32

        def error(grad: Tensor, right: Tensor = right.grad) -> float:
            return float((grad - right).norm() / right.norm())

        # Equal, but for the order in which the bf16 gradients of a tensor with several readers,
        # such as the text, are added up: FSDP's hooks change it.
        assert error(p.grad) < 1.2 * error(theirs[name]) < 0.05, name


def test_parameters_are_back_after_a_call_that_fails():
    plain = network()
    cast_network(plain, dtype=torch.bfloat16)
    before = {name: id(p) for name, p in plain.named_parameters()}
    with pytest.raises(UsageError):  # five channels
        plain(torch.zeros(1, 5, 1, 1, 1), torch.zeros(1, 1))
    assert {name: id(p) for name, p in plain.named_parameters()} == before


def test_a_frozen_network_is_stored_in_the_computing_precision():
    frozen = network()
    cast_network(frozen, dtype=torch.bfloat16, trained=False)
    assert {p.dtype for p in frozen.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in frozen.parameters())
