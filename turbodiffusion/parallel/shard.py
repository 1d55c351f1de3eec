"""Sharded parameters (FSDP2): each process keeps a part of every tensor, in float32.

A block's parameters are gathered before it runs and let go after it. They are stored in float32
and gathered in the computing precision, so the optimiser works on float32 masters and small
updates are not lost; gradients are reduced in float32. Inputs keep their types, because times and
modulation are float32 in a bf16 network.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


def shard_network(
    network: nn.Module, *, mesh: DeviceMesh, dtype: torch.dtype, trained: bool = True
) -> None:
    """Shard in place: each of ``network.blocks``, then embeddings and head together.

    Args:
        mesh: (replicate, shard), see :class:`~.ranks.Ranks`.
        dtype: computing precision of the parameters.
        trained: False freezes the network and stores it in ``dtype``.

    The network gets an attribute ``compute_dtype``, since that of its weights no longer tells.
    """
    network.compute_dtype = dtype  # type: ignore[assignment]
    network.requires_grad_(trained)
    network.to(torch.float32 if trained else dtype)
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    # A mesh of one replica is plain FSDP, without the second reduction.
    flat = mesh["shard"] if mesh["replicate"].size() == 1 else mesh
    # Gathering again costs nothing where there is nobody to gather from, and nor does keeping.
    reshard = mesh["shard"].size() > 1
    blocks = getattr(network, "blocks", ())
    for block in blocks:
        fully_shard(block, mesh=flat, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(network, mesh=flat, mp_policy=policy, reshard_after_forward=False)


def sync_gradients(network: nn.Module, *, sync: bool) -> None:
    """Whether the next backward passes reduce gradients over the processes, or only add them up."""
    network.set_requires_gradient_sync(sync)  # type: ignore[operator]
