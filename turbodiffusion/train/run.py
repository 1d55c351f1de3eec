"""From settings to a running :class:`~.trainer.Trainer`: networks built, parallelised, restored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from turbodiffusion.models.cards import ModelCard, card
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.parallel import ranks as processes
from turbodiffusion.parallel.activations import recompute_activations
from turbodiffusion.parallel.alone import cast_network
from turbodiffusion.parallel.context import split_sequence
from turbodiffusion.parallel.ranks import Ranks
from turbodiffusion.parallel.shard import shard_network
from turbodiffusion.train.config import TrainConfig
from turbodiffusion.train.exact import ExactCopy
from turbodiffusion.train.fill import fill
from turbodiffusion.train.losses import Networks
from turbodiffusion.train.metrics import JsonLines, TensorBoard, WeightsAndBiases, Writer
from turbodiffusion.train.progress import Progress
from turbodiffusion.train.samples import Sampler, open_vae, video_suffix
from turbodiffusion.train.sources import Source, latent_shape, open_source
from turbodiffusion.train.stages import derived, empty_network, require_starts, roles, start_of
from turbodiffusion.train.stopping import Stopping
from turbodiffusion.train.trainer import NETS, Trainer
from turbodiffusion.train.work import peak, step_operations


def compute_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Precision of the networks' arithmetic."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def parallelise(network: WanDiT, config: TrainConfig, ranks: Ranks, *, trained: bool) -> WanDiT:
    """Split, checkpoint, compile and shard one network, in this order."""
    split_sequence(network, group=ranks.context_group)
    if trained:
        recompute_activations(
            network, mode=config.parallel.activations, every=config.parallel.every
        )
    if config.compile:
        from turbodiffusion.train.compiled import compile_network

        compile_network(network)
    dtype = compute_dtype(config, ranks.device)
    if ranks.world == 1 and config.parallel.activations == "none":
        cast_network(network, dtype=dtype, trained=trained)
    else:
        shard_network(network, mesh=ranks.mesh, dtype=dtype, trained=trained)
    return network


def build_networks(
    config: TrainConfig, one: ModelCard, ranks: Ranks, *, filled: bool = True
) -> Networks:
    """The networks of the stage, parallelised and then filled, one after the other.

    Whole networks exist on the meta device only; not ``filled``, they stay there.
    """
    made: dict[str, WanDiT] = {}
    for role in roles(config):
        network = empty_network(config, one, role)
        made[role] = parallelise(network, config, ranks, trained=role in NETS)
        if filled:
            fill(network, one, start_of(config, role), config.seed, ranks.device)
    exact = None
    computing = compute_dtype(config, ranks.device)
    if config.exact_derivative and derived(config) and computing is not torch.float32:
        copy = empty_network(config, one, "student")
        exact = ExactCopy(copy.to_empty(device=ranks.device) if filled else copy, made["student"])
    return Networks(**made, exact=exact)


def tokens_of(one: ModelCard, config: TrainConfig) -> int:
    """Tokens of one video of the run."""
    _, t, h, w = latent_shape(one, config)
    pt, ph, pw = one.dit.patch
    return (t // pt) * (h // ph) * (w // pw)


def open_trainer(
    config: TrainConfig, ranks: Ranks, *, quiet: bool = False, source: Source | None = None
) -> Trainer:
    """Everything of a run, continued from its newest checkpoint.

    ``source`` takes the place of what ``config.data`` names.
    """
    one = card(config.card)
    config.passes(ranks.data_world)  # refuses an impossible batch before anything is built
    require_starts(config)
    networks = build_networks(config, one, ranks)
    progress = Progress(
        config.steps, config.batch,
        step_operations(config, one.dit, tokens_of(one, config)) * config.batch / ranks.world,
        peak(ranks.device),
        quiet or not ranks.first,
    )  # fmt: skip
    source = source or open_source(one, config)
    draw = None
    if config.sample_every:
        vae = open_vae(one, config.vae, ranks.device)
        draw = Sampler(config, networks, one, ranks, source, vae, video_suffix())
    trainer = Trainer(config, ranks, config.loss.objective(networks), source, progress, draw=draw)
    trainer.resume()
    if ranks.first:
        trainer.writers = open_writers(config, trainer.iteration)
    return trainer


def open_writers(config: TrainConfig, resume: int) -> list[Writer]:
    """The destinations that ``config`` asks for."""
    folder = Path(config.out)
    writers: list[Writer] = [JsonLines(folder / "metrics.jsonl", resume)]
    if config.tensorboard:
        writers.append(TensorBoard(folder / "tensorboard", resume))
    if config.wandb:
        writers.append(WeightsAndBiases(config.wandb, folder, config.as_json()))
    return writers


def train(
    config: TrainConfig, device: torch.device, *, quiet: bool = False, source: Source | None = None
) -> dict[str, Any]:
    """Run or continue the training that ``config`` describes; returns a report.

    Writes ``config.json``, ``metrics.jsonl``, ``checkpoints/`` and, when asked, ``samples/`` and
    ``tensorboard/`` into ``config.out``.

    Raises:
        KeyboardInterrupt, SystemExit: the run was interrupted, and a checkpoint written.
    """
    joins = not dist.is_initialized()  # a caller's group stays the caller's
    ranks = processes.start(device, shard=config.parallel.shard, context=config.parallel.context)
    try:
        trainer = open_trainer(config, ranks, quiet=quiet, source=source)
        if ranks.first:
            path = Path(config.out) / "config.json"
            path.write_text(json.dumps(config.as_json(), indent=1) + "\n", "utf-8")
        with Stopping(quiet=quiet or not ranks.first) as stopping:
            report = trainer.run(stopping.asked)
        stopped = ranks.any(stopping.asked())
        ranks.wait()  # whoever leaves first breaks the exchanges of the others
        if stopped:
            stopping.end()
        return report
    finally:
        if joins:
            processes.leave()
