"""Weights for networks built on the meta device: each process reads and holds its own shards only.

A file is read by ranges of elements: the rows of a shard and nothing more. Fresh weights are drawn
tensor by tensor on the CPU, whole, and cut; all processes draw the same numbers as one would for a
network that is not sharded. So a process needs the memory of its shards and of one tensor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.utils._python_dispatch import TorchDispatchMode

from turbodiffusion.errors import WeightsError
from turbodiffusion.models.cards import ModelCard
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.weights.check import require_config, some
from turbodiffusion.weights.distributed import find_distributed
from turbodiffusion.weights.find import find
from turbodiffusion.weights.spec import PROJ_L
from turbodiffusion.weights.stream import Tensors, identify, open_network

_DRAWN = (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default)


@torch.no_grad()
def fill(
    network: WanDiT, card: ModelCard, init: str, seed: int, device: torch.device | str
) -> None:
    """Materialise ``network`` on ``device``, from the weights ``init`` or fresh ones of ``seed``.

    What a sparse network has and the file has not is its projection, which starts at zero.

    Args:
        network: on the meta device, sharded or not.
        init: name, file or folder of a network, or a training run; empty: fresh weights.

    Raises:
        WeightsError: the weights are missing or do not fit.
    """
    network.to_empty(device=device)
    if init:
        _read(network, open_init(init, card))
    else:
        with _DrawWhole():
            network.init_weights(torch.Generator().manual_seed(seed))


def open_init(init: str, card: ModelCard) -> Tensors:
    """The weights that a run starts from, as a stream, after the checks that need no tensor."""
    path = Path(init)
    if not path.is_file() and find_distributed(path) is None:
        # One expert is trained at a time, so the file of one is enough.
        path = next(iter(find(init, "dit").dit.values()))
    source = open_network(path)
    found = identify(source, path)
    require_config(found, card.dit, card.name)
    if found.quantized:
        raise WeightsError(
            "train-init-quantized",
            f"{path} holds int8 weights, which training cannot go on from.",
            "Start from the file that it was quantised from.",
        )
    return source


def _read(network: WanDiT, source: Tensors) -> None:
    parameters = dict(network.named_parameters())
    missing = tuple(n for n in parameters if n not in source.spec and PROJ_L not in n)
    if missing:
        raise WeightsError(
            "weights-keys",
            f"{len(missing)} tensors of the network are not in the file ({some(missing)}).",
            "See what the file holds with `turbodiffusion inspect FILE`.",
        )
    for name, parameter in parameters.items():
        local, start, stop = own_rows(parameter)
        if name not in source.spec:
            local.zero_()
        elif local.numel():
            row = local[0].numel()
            values = source.elements(name, start * row, stop * row)
            local.copy_(values.view(local.shape))


def own_rows(tensor: Tensor) -> tuple[Tensor, int, int]:
    """What this process holds of ``tensor``, and the range of rows (axis 0) that it is."""
    rows = tensor.shape[0]
    start, stop, local = 0, rows, tensor
    if isinstance(tensor, DTensor):
        local = tensor.to_local()
        for axis, placement in enumerate(tensor.placements):
            if isinstance(placement, Shard):
                part = -(-rows // tensor.device_mesh.size(axis))
                start = min(part * tensor.device_mesh.get_local_rank(axis), rows)
                stop = min(start + part, rows)
    assert len(local) == stop - start, (tuple(tensor.shape), tuple(local.shape), start, stop)
    return local, start, stop


class _DrawWhole(TorchDispatchMode):
    """Random fills of any tensor become those of a whole float32 tensor on the CPU, then its part.

    Otherwise a shard would be drawn from a stream of its own.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _DRAWN:
            return func(*args, **(kwargs or {}))
        local, start, stop = own_rows(args[0])
        whole = torch.empty(args[0].shape)
        func(whole, *args[1:], **(kwargs or {}))
        local.copy_(whole[start:stop])
        return args[0]
