"""What one of several processes does; ``test_two_processes.py`` starts it with torchrun's words.

Every case prints one JSON line from rank 0: how far weights, loss and gradients are from those of
the plain network in one process, or what became of a damaged checkpoint.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.train.runs import settings
from turbodiffusion.errors import CapacityError, WeightsError
from turbodiffusion.models.cards import card
from turbodiffusion.parallel import ranks as processes
from turbodiffusion.train.config import TrainConfig
from turbodiffusion.train.losses import Networks
from turbodiffusion.train.run import open_trainer
from turbodiffusion.train.sources import Noise, mixed_seed
from turbodiffusion.train.stages import build_network, roles
from turbodiffusion.train.trainer import NETS

CPU = torch.device("cpu")
ITERATIONS = {
    "flow": (0,), "sla": (0,), "sla-flow": (0,), "align": (0,), "rcm": (0, 2, 3), "dcm": (0,),
    "match": (0, 1),
}  # fmt: skip
"""Of rcm: the consistency loss alone, the fake score, and both losses of the student. Of dcm, rcm
in discrete time: both losses. Of match: both losses, the fake score."""

LAYOUTS: dict[str, dict[str, Any]] = {
    "fsdp": {"shard": 2, "context": 1, "activations": "none"},
    "replicas": {"shard": 1, "context": 1, "activations": "block"},
    "hsdp": {"shard": 2, "context": 1, "activations": "none"},
    "ulysses": {"shard": 2, "context": 2, "activations": "matmul"},
}


Tensors = dict[str, torch.Tensor]


def settings_for(case: str, folder: Path, layout: str) -> TrainConfig:
    """A run of the stage ``case``; one slot for every process that has samples of its own."""
    changes: dict[str, Any] = {"parallel": LAYOUTS[layout], "batch": 4 if layout == "hsdp" else 2}
    if case == "dcm":
        changes["loss"] = {"consistency": {"kind": "Discrete", "skip": 2}}
    return settings("rcm" if case == "dcm" else case, folder, **changes)


def plain(config: TrainConfig, iteration: int) -> tuple[float, Tensors, Tensors]:
    """Loss, weights and gradients of one process that knows nothing of shards."""
    one = card(config.card)
    made: dict[str, nn.Module] = {}
    for role in roles(config):
        made[role] = build_network(config, one, role).requires_grad_(role in NETS)
    networks = Networks(**made)
    phase = config.loss.objective(networks).phase(iteration)
    slots = config.batch // config.micro_batch
    source, total = Noise(one, config), 0.0
    for slot in range(slots):
        for order, closure in enumerate(phase.closures):
            generator = torch.Generator().manual_seed(
                mixed_seed(config.seed, 2, iteration, slot, order)
            )
            loss = closure(source.batch(iteration, slot), generator).loss / slots
            loss.backward()
            total += float(loss.detach())
    named = dict(made[phase.trains].named_parameters())
    grads = {n: p.grad for n, p in named.items() if p.grad is not None}
    return total, {n: p.detach() for n, p in named.items()}, grads


def compare(case: str, layout: str, folder: Path) -> list[dict[str, Any]]:
    """The lines of one case."""
    config = settings_for(case, folder / case, layout)
    way = config.parallel
    world = processes.layout(CPU, shard=way.shard, context=way.context)
    trainer = open_trainer(config, world, quiet=True)
    found = []
    for iteration in ITERATIONS[case]:
        trainer.iteration = iteration
        phase = trainer.objective.phase(iteration)
        trainer.backward(phase)
        loss = float(world.mean(trainer.meter.values.pop("loss")[0]))
        learner = trainer.networks[phase.trains]
        named = dict(learner.named_parameters())
        weights = {n: p.detach().full_tensor() for n, p in named.items()}
        grads = {n: p.grad.full_tensor() for n, p in named.items() if p.grad is not None}
        learner.zero_grad()
        if not world.first:
            continue
        wanted, same, reference = plain(config, iteration)
        assert grads.keys() == reference.keys() and weights.keys() == same.keys()
        # Relative to the whole: some tensors have gradients of rounding size only.
        norm = torch.stack([g.norm() for g in reference.values()]).norm()
        worst = max(float((grads[n] - g).norm() / norm) for n, g in reference.items())
        found.append({
            "case": f"{case}-{layout}-{iteration}", "loss": abs(loss / wanted - 1),
            "gradient": worst, "norm": float(norm), "tensors": len(grads),
            "equal": all(torch.equal(weights[n], w) for n, w in same.items()),
        })  # fmt: skip
    return found


def move(case: str, folder: Path) -> None:
    """Make a checkpoint for one process, and go on from one that a single process has made."""
    config = settings_for(case, folder / case / "two-one", "fsdp")
    world = processes.layout(CPU, shard=2)
    open_trainer(replace(config, steps=2), world, quiet=True).run()
    open_trainer(replace(config, out=str(folder / case / "one-two")), world, quiet=True).run()


def damage(folder: Path) -> dict[str, Any]:
    """What both processes are told when the second one's shard is cut short."""
    config = settings_for("flow", folder / "damaged", "fsdp")
    world = processes.layout(CPU, shard=2)
    open_trainer(replace(config, steps=1), world, quiet=True).run()
    if world.first:
        shard = folder / "damaged/checkpoints/iter_000000001/model/__1_0.distcp"
        shard.write_bytes(shard.read_bytes()[:2000])
    world.wait()
    told = 0
    try:
        open_trainer(config, world, quiet=True)
    except WeightsError as error:
        told = int(error.code == "train-checkpoint" and "iter_000000001" in error.message)
    return {"case": "damaged", "told": float(world.mean(torch.tensor(float(told))))}


def overflow(folder: Path) -> dict[str, Any]:
    """What both processes are told when the second one's disk is full, and what is left."""
    config = settings_for("flow", folder / "overflow", "fsdp")
    world = processes.layout(CPU, shard=2)
    trainer = open_trainer(replace(config, steps=1), world, quiet=True)
    trainer.run()
    trainer.iteration = 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not world.first:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    told = 0
    try:
        trainer.save()
    except CapacityError as error:
        told = int(error.code == "train-disk-full")
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = sorted(path.name for path in (folder / "overflow/checkpoints").iterdir())
    return {"case": "overflow", "told": float(world.mean(torch.tensor(float(told)))), "left": left}


def main(folder: Path, cases: list[str]) -> None:
    world = processes.start(CPU)
    for case in cases:
        name, _, way = case.partition(":")
        if name in ("damage", "overflow"):
            lines = [damage(folder) if name == "damage" else overflow(folder)]
        elif way == "move":
            lines = []
            move(name, folder)
        else:
            lines = compare(name, way, folder)
        for line in lines if world.first else ():
            print(json.dumps(line), flush=True)
    world.wait()
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    # Everything is compared and printed. gloo's threads can outlive their group and then abort the
    # interpreter's own end ("terminate called without an active exception"); so it is skipped.
    sys.stdout.flush()
    os._exit(0)
