"""The processes of a run and how they are laid out.

``world = replicate × shard``: parameters are cut over ``shard`` neighbours and repeated
``replicate`` times (HSDP; FSDP when there is one replica). Over the same processes,
``world = data × context``: ``context`` neighbours hold the tokens of the same samples.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from turbodiffusion.errors import UsageError


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Attributes:
        mesh: (replicate, shard), over all processes.
        context_group: the processes that share a sequence; None where each has its own.
    """

    device: torch.device
    rank: int
    world: int
    context: int
    mesh: DeviceMesh
    context_group: dist.ProcessGroup | None

    @property
    def data_rank(self) -> int:
        """Which of the ``data_world`` streams of samples this process works on."""
        return self.rank // self.context

    @property
    def data_world(self) -> int:
        return self.world // self.context

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over all processes."""
        if self.world == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.world

    def largest(self, value: Tensor) -> Tensor:
        """Largest value of a tensor over all processes, element by element."""
        if self.world == 1:
            return value
        value = value.clone()
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def any(self, flag: bool) -> bool:
        """True in every process as soon as it is in one."""
        if self.world == 1:
            return flag
        return bool(self.largest(torch.tensor(float(flag), device=self.device)).item())

    def wait(self) -> None:
        """Return when every process has come this far."""
        if self.world > 1:
            dist.barrier()

    def from_first(self, value: str) -> str:
        """The first process's word."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]


def start(device: torch.device, *, shard: int = 0, context: int = 1) -> Ranks:
    """Join the processes that ``torchrun`` announces; a plain start is a group of one.

    Args:
        device: where this process computes; a GPU without an index becomes the local rank's.
        shard: processes that share one copy of the parameters; 0, or more than there are: all.
        context: processes that share one sequence.

    Raises:
        UsageError: the sizes do not divide the number of processes.
    """
    if device.type == "cuda":
        index = int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" and os.name != "nt" else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return layout(device, shard=shard, context=context)


def layout(device: torch.device, *, shard: int = 0, context: int = 1) -> Ranks:
    """:class:`Ranks` of the process group that exists, see :func:`start`."""
    rank, world = dist.get_rank(), dist.get_world_size()
    shard = min(shard or world, world)
    for name, size in (("shard", shard), ("context", context)):
        if size < 1 or world % size:
            fitting = ", ".join(str(n) for n in range(1, world + 1) if world % n == 0)
            raise UsageError(
                "parallel-layout",
                f"{name} {size} does not divide the {world} process(es) of this run.",
                f"Use one of {fitting}.",
            )
    mesh = init_device_mesh(
        device.type, (world // shard, shard), mesh_dim_names=("replicate", "shard")
    )
    group = None
    if context > 1:
        rows = torch.arange(world).view(-1, context).tolist()
        group, _ = dist.new_subgroups_by_enumeration(rows)
    return Ranks(device, rank, world, context, mesh, group)


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
