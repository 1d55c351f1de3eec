"""What a run would be on other numbers of GPUs, found out on one CPU without loading anything.

The networks are built on the meta device and sharded for real over a process group that exists in
name only (torch's ``fake`` backend), so parameter groups and shardings are those of the run.
Weights, gradients, moments and average are counted from the shards. The rest is estimated:

* gathered: the parameters that live outside the blocks, and two blocks of the largest network (one
  runs while the next is gathered), in the computing precision, and one block's float32 gradients;
* activations: what the blocks keep by the mode of recomputation, and one block's largest moment,
  counted on tensors without bytes (:mod:`.footprint`) with the portable operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from turbodiffusion.models.cards import ModelCard, card
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.parallel.activations import Mode
from turbodiffusion.parallel.ranks import Ranks, layout, leave
from turbodiffusion.train.config import TrainConfig
from turbodiffusion.train.footprint import Footprint, block_footprint
from turbodiffusion.train.losses import Networks
from turbodiffusion.train.optim import parameter_groups
from turbodiffusion.train.run import build_networks, compute_dtype, tokens_of
from turbodiffusion.train.stages import attention_of
from turbodiffusion.train.work import step_operations

_ADAM = 8  # bytes of both moments of a parameter, float32


def dry_run(config: TrainConfig, gpus: Sequence[int]) -> dict[str, Any]:
    """Layout, memory and speed-independent cost for each number of GPUs, as JSON values."""
    one = card(config.card)
    return {
        "stage": config.stage,
        "preset": config.preset,
        "card": one.name,
        "tokens_per_sample": tokens_of(one, config),
        "runs": [_one(config, one, count) for count in gpus],
    }


def _one(config: TrainConfig, one: ModelCard, world: int) -> dict[str, Any]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    asked = config.batch
    leave()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        ranks = layout(
            torch.device("cpu"), shard=config.parallel.shard, context=config.parallel.context
        )
        config = replace(
            config, dtype="bfloat16" if config.dtype == "auto" else config.dtype,
            batch=_shared_batch(config, ranks),
        )  # fmt: skip
        networks = build_networks(config, one, ranks, filled=False)
        return _describe(config, one, ranks, networks) | {"samples_asked": asked}
    finally:
        leave()


def _shared_batch(config: TrainConfig, ranks: Ranks) -> int:
    """The batch of ``config``, or the next one that all processes can share."""
    part = config.micro_batch * ranks.data_world
    return -(-config.batch // part) * part


def _describe(
    config: TrainConfig, one: ModelCard, ranks: Ranks, networks: Networks
) -> dict[str, Any]:
    dtype = compute_dtype(config, ranks.device)
    roles = {r: n for r, n in vars(networks).items() if isinstance(n, nn.Module)}
    memory = dict.fromkeys(("weights", "gradients", "moments", "average"), 0)
    for role, network in roles.items():
        trained = _local(network, trained=True)
        memory["weights"] += sum(_bytes(p) for p in network.parameters())
        memory["gradients"] = max(memory["gradients"], 4 * trained)  # one network a step
        memory["moments"] += _ADAM * trained
        if role == "student" and config.ema:
            memory["average"] = 4 * trained
    if networks.exact is not None:
        memory["derivative"] = sum(_bytes(p) for p in networks.exact.copy.parameters())
    memory["gathered"] = _gathered(roles, dtype.itemsize)
    memory["activations"] = _activations(
        config, one, tokens_of(one, config) // config.parallel.context, dtype
    )
    return {
        "gpus": ranks.world,
        "mesh": {"replicate": ranks.mesh.size(0), "shard": ranks.mesh.size(1),
                 "data": ranks.data_world, "context": ranks.context},
        "networks": {role: _network(network) for role, network in roles.items()},
        "groups": _groups(networks.student, config),
        "memory": memory,
        "memory_total": sum(memory.values()),
        "samples_per_step": config.batch,
        "passes": config.passes(ranks.data_world),
        "tokens_per_step": config.batch * tokens_of(one, config),
        "operations_per_step": config.batch
        * step_operations(config, one.dit, tokens_of(one, config)),
    }  # fmt: skip


def _bytes(parameter: torch.Tensor) -> int:
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return local.numel() * local.element_size()


def _local(network: nn.Module, *, trained: bool) -> int:
    """Elements of the first process's shards."""
    return sum(
        _bytes(p) // p.element_size() for p in network.parameters() if p.requires_grad is trained
    )


def _gathered(roles: dict[str, nn.Module], element: int) -> int:
    """Bytes of whole parameters in the computing precision, at the largest moment."""
    outside, block, whole = 0, 0, 0
    for network in roles.values():
        assert isinstance(network, WanDiT)
        total = sum(p.numel() for p in network.parameters())
        each = [sum(p.numel() for p in one.parameters()) for one in network.blocks]
        outside += element * (total - sum(each))
        block = max(block, *each)
        stored = next(network.parameters())
        if stored.element_size() != element:
            whole = max(whole, element * total)
    if not isinstance(stored, DTensor):  # one process casts a network as a whole
        return whole
    return outside + block * (2 * element + 4)


def _activations(config: TrainConfig, one: ModelCard, tokens: int, dtype: torch.dtype) -> int:
    """Bytes that one pass holds of ``tokens`` tokens a video at its largest moment."""
    layers, mode = one.dit.num_layers, config.parallel.activations
    again = -(-layers // config.parallel.every)

    def count(mode: Mode) -> Footprint:
        return block_footprint(
            one.dit, attention_of(config), samples=config.micro_batch, tokens=tokens, dtype=dtype,
            mode=mode,
        )  # fmt: skip

    part = count(mode)
    whole = part if again == layers else count("none")
    return again * part.kept + (layers - again) * whole.kept + part.peak


def _network(network: nn.Module) -> dict[str, Any]:
    """Size and shardings of a network; one line for each way a tensor is cut."""
    ways: dict[str, dict[str, int]] = {}
    for parameter in network.parameters():
        kind = ",".join(map(str, parameter.placements)) if isinstance(parameter, DTensor) else "-"
        way = ways.setdefault(f"{parameter.dtype} {kind}".removeprefix("torch."), {})
        way["tensors"] = way.get("tensors", 0) + 1
        way["elements"] = way.get("elements", 0) + parameter.numel()
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "local": sum(_bytes(p) // p.element_size() for p in network.parameters()),
        "trained": any(p.requires_grad for p in network.parameters()),
        "shardings": ways,
    }


def _groups(student: nn.Module, config: TrainConfig) -> dict[str, dict[str, float]]:
    groups = parameter_groups(student.named_parameters(), config.optim.weight_decay)
    return {
        name: {
            "tensors": len(group["params"]),
            "elements": sum(p.numel() for p in group["params"]),
            "weight_decay": group["weight_decay"],
        }
        for name, group in groups.items()
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The dry run as text: what all runs share, then a column for each number of GPUs."""
    runs: list[dict[str, Any]] = found["runs"]
    first = runs[0]
    out = [
        f"{found['stage']}, preset {found['preset']}, {found['card']}: "
        f"{found['tokens_per_sample']:,} tokens a sample"
    ]
    for role, network in first["networks"].items():
        state = "trained" if network["trained"] else "frozen"
        out.append(f"- {role}: {network['parameters'] / 1e9:.3g} G parameters, {state}")
    for name, group in first["groups"].items():
        out.append(
            f"- {name}: {group['tensors']} tensors, {group['elements'] / 1e9:.3g} G elements, "
            f"weight decay {group['weight_decay']:g}"
        )
    out += ["", *_table(runs)]
    for run in runs:
        if run["samples_per_step"] != run["samples_asked"]:
            out.append(
                f"{run['gpus']} GPUs cannot share {run['samples_asked']} samples; counted with "
                f"{run['samples_per_step']}."
            )
    out.append("S(0): cut by rows over the shards; R: the same in every replica; -: whole.")
    return out


def _table(runs: list[dict[str, Any]]) -> list[str]:
    rows: list[tuple[str, list[str]]] = [
        ("GPUs", [str(run["gpus"]) for run in runs]),
        ("replicate × shard", [_pair(run, "replicate", "shard") for run in runs]),
        ("data × context", [_pair(run, "data", "context") for run in runs]),
        ("passes a step", [str(run["passes"]) for run in runs]),
        ("samples a step", [str(run["samples_per_step"]) for run in runs]),
        ("tokens a step", [f"{run['tokens_per_step']:,}" for run in runs]),
        ("P operations a step", [f"{run['operations_per_step'] / 1e15:,.4g}" for run in runs]),
    ]
    for role in runs[0]["networks"]:
        ways = [", ".join(run["networks"][role]["shardings"]) for run in runs]
        rows.append((role, ways))
    for name in runs[0]["memory"]:
        rows.append((f"GiB {name}", [f"{run['memory'][name] / 2**30:.1f}" for run in runs]))
    rows.append(("GiB a GPU", [f"{run['memory_total'] / 2**30:.1f}" for run in runs]))
    left = max(len(name) for name, _ in rows)
    right = max(len(cell) for _, cells in rows for cell in cells) + 2
    return [name.ljust(left) + "".join(cell.rjust(right) for cell in cells) for name, cells in rows]


def _pair(run: dict[str, Any], one: str, other: str) -> str:
    return f"{run['mesh'][one]} × {run['mesh'][other]}"
