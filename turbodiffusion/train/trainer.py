"""The loop that every stage runs in.

One iteration asks the objective for its phase, draws batches, runs each closure forward and
backward, steps one optimiser and perhaps the average. Batches and noise follow from the seed, the
iteration and the slot alone, so a run that was killed goes on as if it had not been, and any number
of processes that divides the batch computes the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turbodiffusion.errors import TurboDiffusionError
from turbodiffusion.parallel.ranks import Ranks
from turbodiffusion.parallel.shard import sync_gradients
from turbodiffusion.train.checkpoints import Checkpoints
from turbodiffusion.train.config import TrainConfig
from turbodiffusion.train.ema import decay
from turbodiffusion.train.losses import Batch, Objective, Phase
from turbodiffusion.train.meter import Meter
from turbodiffusion.train.metrics import Writer
from turbodiffusion.train.optim import Average, Optimizer
from turbodiffusion.train.progress import Progress
from turbodiffusion.train.sources import Source, mixed_seed, skipped

NETS = {"student": "net", "fake_score": "net_fake_score"}
"""Role → prefix of its tensors in checkpoints; the average of the student is ``net_ema``."""

Draw = Callable[[int], Mapping[str, float]]
"""``draw(iteration)`` makes sample videos and returns what was measured on them; all processes call
it together."""


class Trainer:
    """A run: sharded networks, their optimisers, and where it stands.

    Args:
        objective: holds the networks, already sharded.
        draw: makes samples with the averaged weights every ``config.sample_every`` iterations.
    """

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks,
        objective: Objective,
        source: Source,
        progress: Progress,
        *,
        draw: Draw | None = None,
    ) -> None:
        self.config, self.ranks, self.objective, self.source = config, ranks, objective, source
        self.progress, self.draw = progress, draw
        self.writers: list[Writer] = []  # stays empty in all processes but the first
        networks = objective.networks
        self.networks: dict[str, nn.Module] = {"student": networks.student}
        settings = {"student": config.optim, "fake_score": config.fake_score}
        if networks.fake_score is not None:
            self.networks["fake_score"] = networks.fake_score
        self.optimizers = {role: Optimizer(n, settings[role]) for role, n in self.networks.items()}
        self.average = Average(networks.student) if config.ema else None
        folder = Path(config.out) / "checkpoints"
        self.checkpoints = Checkpoints(folder, ranks=ranks, keep=config.keep)
        self.passes = config.passes(ranks.data_world)
        self.iteration = 0
        self.saved = -1
        self.broken = 0
        self.broken_in_row = 0
        self.seconds = 0.0
        self.rate = 0.0  # of the last step
        self.meter = Meter(ranks)
        self.drawn: dict[str, float] = {}  # of samples, until they are reported

    def resume(self) -> bool:
        """Continue from the newest checkpoint, if there is one."""
        path = self.checkpoints.newest()
        if path is None:
            return False
        tensors = self._tensors()
        trainer = self.checkpoints.load(path, tensors)
        for role, optimizer in self.optimizers.items():
            optimizer.load_state_dict(tensors["optim"][NETS[role]])
        self.iteration = self.saved = trainer["iteration"]
        self.broken, self.seconds = trainer["broken"], trainer["seconds"]
        self.source.load_state_dict(trainer["source"])
        return True

    def save(self) -> None:
        """A checkpoint of this moment, unless it is there already."""
        if self.saved == self.iteration:
            return
        trainer = {
            "iteration": self.iteration, "broken": self.broken, "seconds": self.seconds,
            "source": self.source.state_dict(), "config": self.config.as_json(),
        }  # fmt: skip
        self.checkpoints.save(self.iteration, self._tensors(), trainer)
        self.saved = self.iteration

    def run(self, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Train until the last step, the end of this run's minutes, or ``stop()`` in any process.

        Returns a report. While gradients are broken no checkpoint is written: should the weights
        have run away, those from before are the ones to keep.
        """
        config, start, before = self.config, time.monotonic(), self.seconds
        limit = config.minutes * 60 if config.minutes else math.inf
        due = False
        while self.iteration < config.steps:
            if self.ranks.any(stop() or time.monotonic() - start >= limit):
                break
            phase = self.objective.phase(self.iteration)
            norm = self.step(phase)
            self.iteration += 1
            self.seconds = before + time.monotonic() - start
            self.progress.tick()
            if self.draw is not None and self._due(config.sample_every):
                self._sample(self.draw)
                self.progress.restart()
            if self._due(config.log_every):
                self._log(norm)
            due = due or self._due(config.save_every)
            if due and not self.broken_in_row:
                due = False
                self.save()
                self.progress.restart()
        self.save()
        for writer in self.writers:
            writer.close()
        return {
            "stage": config.stage, "complete": self.iteration >= config.steps,
            "steps": self.iteration, "seconds": round(self.seconds, 1), "broken": self.broken,
            "processes": self.ranks.world, "checkpoint": str(self.checkpoints.newest()),
            **skipped(self.source),
        }  # fmt: skip

    def step(self, phase: Phase) -> float:
        """One iteration; returns the norm of the gradient."""
        self.backward(phase)
        optimizer = self.optimizers[phase.trains]
        start = self.meter.start()
        self.rate = optimizer.lr(phase.step, self.iteration / self.config.steps)
        norm = optimizer.step(self.rate)
        self.meter.stop("optimizer", start)
        if math.isfinite(norm):
            self.broken_in_row = 0
        else:
            self._count_broken(norm)
        if phase.ema is not None and self.average is not None:
            self.average.update(decay(phase.ema, self.config.ema))
        return norm

    def backward(self, phase: Phase) -> None:
        """Gradients of the mean loss over all slots of the iteration."""
        network = self.networks[phase.trains]
        device, world = self.ranks.device, self.ranks.data_world
        sharded = self.ranks.mesh["shard"].size() > 1
        total = torch.zeros((), device=device, dtype=torch.float64)
        for index in range(self.passes):
            slot = index * world + self.ranks.data_rank
            start = self.meter.start(host=True)
            batch = to_device(self.source.batch(self.iteration, slot), device)
            self.meter.stop("data", start)
            for order, closure in enumerate(phase.closures):
                last = index == self.passes - 1 and order == len(phase.closures) - 1
                # Kept until the last pass, gradients have the size of the whole network.
                sync_gradients(network, sync=last or sharded)
                seed = mixed_seed(self.config.seed, 2, self.iteration, slot, order)
                start = self.meter.start()
                parts = closure(batch, torch.Generator(device).manual_seed(seed))
                name = next(iter(parts.metrics), phase.name)  # the loss itself comes first
                self.meter.stop(f"forward:{name}", start)
                start = self.meter.start()
                (parts.loss / self.passes).backward()
                self.meter.stop(f"backward:{name}", start)
                total += parts.loss.detach() / self.passes
                for metric, value in parts.metrics.items():
                    self.meter.add(metric, value)
        self.meter.add("loss", total)

    def _count_broken(self, norm: float) -> None:
        self.broken += 1
        self.broken_in_row += 1
        if self.broken_in_row >= self.config.bad_steps:
            raise TurboDiffusionError(
                "train-broken",
                f"{self.broken_in_row} steps in a row had a gradient that is not finite "
                f"({norm}); the last is step {self.iteration}.",
                "Lower optim.lr or set optim.clip=1, and start again: it goes on from the last "
                "checkpoint.",
            )

    def _due(self, every: int) -> bool:
        return every > 0 and self.iteration % every == 0

    def _log(self, norm: float) -> None:
        """One report of the time since the last one."""
        values = self.meter.report()
        report = {
            **values, **self.drawn, "grad_norm": norm, "lr": self.rate,
            "broken": self.broken, "seconds": self.seconds, **self.progress.speed(),
            **skipped(self.source),
        }  # fmt: skip
        self.drawn.clear()
        for writer in self.writers:
            writer.write(self.iteration, report)
        last = self.iteration >= self.config.steps
        self.progress.show(self.iteration, values.get("loss", math.nan), final=last)

    def _sample(self, draw: Draw) -> None:
        """Draw with the averaged weights and go on with the live ones."""
        if self.average is not None:
            self.average.swap()
        try:
            self.drawn.update(draw(self.iteration))
        finally:
            if self.average is not None:
                self.average.swap()

    def _tensors(self) -> dict[str, Any]:
        """What a checkpoint holds, as shards: ``model`` and ``optim``."""
        model: dict[str, Tensor] = {}
        for role, network in self.networks.items():
            model |= {f"{NETS[role]}.{name}": v for name, v in network.state_dict().items()}
        if self.average is not None:
            model |= {f"net_ema.{name}": v for name, v in self.average.values.items()}
        optim = {NETS[role]: one.state_dict() for role, one in self.optimizers.items()}
        return {"model": model, "optim": optim}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on ``device``."""
    moved: dict[str, Any] = {}
    for one in fields(batch):
        value: Tensor | None = getattr(batch, one.name)
        moved[one.name] = None if value is None else value.to(device)
    return replace(batch, **moved)
