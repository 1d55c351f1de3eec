"""What one of two processes does; started by ``test_two_processes.py`` with torchrun's variables.

Every case prints one JSON line from rank 0: how far loss and gradients are from those of the plain
network in one process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.train.runs import settings
from turbodiffusion.models.cards import card
from turbodiffusion.parallel import ranks as processes
from turbodiffusion.train.config import TrainConfig
from turbodiffusion.train.losses import Networks
from turbodiffusion.train.run import open_trainer
from turbodiffusion.train.sources import Noise, mixed_seed
from turbodiffusion.train.stages import build_network, roles

CPU = torch.device("cpu")
ITERATIONS = {"flow": (0,), "sla": (0,), "sla-flow": (0,), "rcm": (0, 2, 3)}
"""Of rcm: the consistency loss alone, the fake score, and both losses of the student."""

LAYOUTS: dict[str, dict[str, Any]] = {
    "fsdp": {"shard": 2, "context": 1, "activations": "none"},
    "hsdp": {"shard": 1, "context": 1, "activations": "block"},
    "ulysses": {"shard": 2, "context": 2, "activations": "matmul"},
}


def plain(config: TrainConfig, iteration: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one process that knows nothing of shards."""
    one = card(config.card)
    made: dict[str, nn.Module] = {}
    for role in roles(config):
        made[role] = build_network(config, one, role).requires_grad_(role != "teacher")
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
    learner = made[phase.trains]
    return total, {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}


def compare(stage: str, layout: str, folder: Path) -> list[dict[str, Any]]:
    """The lines of one case."""
    config = settings(stage, folder / stage, parallel=LAYOUTS[layout])
    world = processes.layout(CPU, shard=LAYOUTS[layout]["shard"],
                             context=LAYOUTS[layout]["context"])  # fmt: skip
    trainer = open_trainer(config, world, quiet=True)
    found = []
    for iteration in ITERATIONS[stage]:
        trainer.iteration = iteration
        phase = trainer.objective.phase(iteration)
        trainer.backward(phase)
        loss = float(world.mean(trainer.meter.values.pop("loss")[0]))
        learner = trainer.networks[phase.trains]
        named = learner.named_parameters()
        grads = {n: p.grad.full_tensor() for n, p in named if p.grad is not None}
        learner.zero_grad()
        if not world.first:
            continue
        wanted, reference = plain(config, iteration)
        assert grads.keys() == reference.keys()
        # Relative to the whole: some tensors have gradients of rounding size only.
        norm = torch.stack([g.norm() for g in reference.values()]).norm()
        worst = max(float((grads[n] - g).norm() / norm) for n, g in reference.items())
        found.append({
            "case": f"{stage}-{layout}-{iteration}", "loss": abs(loss / wanted - 1),
            "gradient": worst, "norm": float(norm), "tensors": len(grads),
        })  # fmt: skip
    return found


def move(folder: Path) -> None:
    """Make a checkpoint for one process, and go on from one that a single process has made."""
    world = processes.layout(CPU, shard=2)
    open_trainer(settings("sla", folder / "two-one", steps=2), world, quiet=True).run()
    open_trainer(settings("sla", folder / "one-two", steps=4), world, quiet=True).run()


def main(folder: Path, cases: list[str]) -> None:
    world = processes.start(CPU)
    move(folder)
    for case in cases:
        for line in compare(*case.split(":"), folder):
            print(json.dumps(line), flush=True)
    world.wait()
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    # Everything is compared and printed. gloo's threads can outlive their group and then abort the
    # interpreter's own end ("terminate called without an active exception"); so it is skipped.
    sys.stdout.flush()
    os._exit(0)
