"""Videos drawn while training: what the student makes, above what its teacher makes.

One file an iteration, ``samples/iter_….mp4``. Columns are prompts × seeds, the same in the whole
run; the rows, from the top, are stored in the file as its settings:

==========  ======================================================================================
stage       rows
==========  ======================================================================================
``rcm``     the student in 1, 2 and 4 calls by the few-step sampler; the teacher, guided
``match``   the same, the student being sparse
``align``   the sparse student and its dense one, both in 4 calls
``sla``     the sparse student, then its dense teacher, both guided
others      the network, guided
==========  ======================================================================================

Every row starts from the same noise, so the distance between a row and the teacher's means
something: it is returned as ``sample_mse…``, a mean over all elements of the latents. The networks
are sharded: every process takes part in every call, the first one decodes and writes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turbodiffusion.errors import SetupError, TurboDiffusionError, UsageError
from turbodiffusion.models.cards import ModelCard
from turbodiffusion.models.vae import WanVAE
from turbodiffusion.parallel.ranks import Ranks
from turbodiffusion.sampling.flow import sample_flow
from turbodiffusion.sampling.noise import draw_noise, make_generators
from turbodiffusion.sampling.rcm import sample_rcm
from turbodiffusion.train.config import TrainConfig
from turbodiffusion.train.losses import Batch, Networks, dtype_of
from turbodiffusion.train.presets import DistillLoss
from turbodiffusion.train.sources import Source
from turbodiffusion.train.trainer import to_device

FEW = (1, 2, 4)
"""Calls of a distilled student; more would be drawn with the same angles as 4."""

Row = Callable[[nn.Module], Tensor]


class Sampler:
    """Draws the videos of a run and measures them.

    Args:
        source: the first ``config.sample_prompts`` samples of it lend their texts.
        vae: decodes; ``suffix`` of the files, see :func:`open_vae` and :func:`video_suffix`.
    """

    def __init__(
        self, config: TrainConfig, networks: Networks, card: ModelCard, ranks: Ranks,
        source: Source, vae: WanVAE, suffix: str = ".mp4",
    ) -> None:  # fmt: skip
        self.config, self.networks, self.card, self.ranks = config, networks, card, ranks
        self.source, self.vae, self.suffix = source, vae, suffix
        self.batch: Batch | None = None
        self.teacher: Tensor | None = None  # its videos never change

    @torch.no_grad()
    def __call__(self, iteration: int) -> dict[str, float]:
        """Draw with the networks as they are; returns the distances from the teacher."""
        if self.batch is None:
            self.batch = to_device(first_samples(self.source, self.config), self.ranks.device)
        rows = {name: draw(self.networks.student) for name, draw in self.rows().items()}
        found: dict[str, float] = {}
        if self.networks.teacher is not None:
            if self.teacher is None:
                self.teacher = self.draw_teacher(self.networks.teacher)
            for name, latents in rows.items():
                mean = (latents.double() - self.teacher.double()).square().mean()
                found["sample_mse" + name.removeprefix("student")] = float(mean)
            rows["teacher"] = self.teacher
        if self.ranks.first:
            path = Path(self.config.out) / "samples" / f"iter_{iteration:09d}{self.suffix}"
            try:
                self.write(path, rows)
            except TurboDiffusionError as error:  # a full disk, say, is no reason to stop training
                warnings.warn(f"Samples were not written: {error.message}", stacklevel=2)
        return found

    def rows(self) -> dict[str, Row]:
        """How the student is drawn, by name."""
        if isinstance(self.config.loss, DistillLoss):
            return {f"student_{steps}": partial(self.few, steps=steps) for steps in FEW}
        return {"student": self.draw_teacher}

    def draw_teacher(self, network: nn.Module) -> Tensor:
        """As the teacher of the stage is drawn: in few calls where it is a student itself."""
        return self.few(network, FEW[-1]) if self.config.stage == "align" else self.many(network)

    def few(self, network: nn.Module, steps: int) -> Tensor:
        """Latents in ``steps`` calls; fresh noise goes on from the start noise."""
        batch, loss, seeds = self.batch, self.config.loss, self.config.sample_seeds
        assert batch is not None
        generators = [g for _ in range(len(batch.context_BSD) // seeds)
                      for g in make_generators(0, seeds)]  # fmt: skip
        return sample_rcm(
            velocity(network, batch, batch.context_BSD),
            draw_noise(batch.latents_BCTHW.shape, generators), num_steps=steps,
            sigma_max=loss.sigma_max if isinstance(loss, DistillLoss) else self.card.sigma_max,
            generator=generators, model_dtype=dtype_of(network), device=self.ranks.device,
        )  # fmt: skip

    def many(self, network: nn.Module) -> Tensor:
        """Latents by the unaccelerated sampler, guided where there is a negative prompt."""
        batch, baseline, seeds = self.batch, self.card.baseline, self.config.sample_seeds
        assert batch is not None
        guided = batch.negative_BSD is not None
        noise = draw_noise((seeds, *batch.latents_BCTHW.shape[1:]), 0)
        return sample_flow(
            velocity(network, batch, batch.context_BSD),
            velocity(network, batch, batch.negative()) if guided else None,
            noise.repeat(len(batch.context_BSD) // seeds, 1, 1, 1, 1),
            steps=self.config.sample_steps, shift=baseline.shift,
            guidance=baseline.guidance if guided else 1.0, solver="euler", convention="rcm",
            model_dtype=dtype_of(network), device=self.ranks.device,
        )  # fmt: skip

    def write(self, path: Path, rows: dict[str, Tensor]) -> None:
        """Decode, one video at a time, and write: columns side by side, rows below each other."""
        from turbodiffusion.media.write import open_writer, side_by_side, to_uint8

        pictures = []
        for latents in rows.values():
            each = [to_uint8(self.vae.decode(one[None].to(self.vae.dtype))) for one in latents]
            pictures.append(side_by_side(torch.cat(each).cpu()))
        frames = torch.cat(pictures, dim=1)
        count, height, width, _ = frames.shape
        settings = {
            "rows": list(rows),
            "stage": self.config.stage,
            "seeds": self.config.sample_seeds,
        }
        with open_writer(path, width, height, self.card.fps, settings, frames=count) as writer:
            writer.write(frames)


def velocity(network: nn.Module, batch: Batch, context_BSD: Tensor) -> Any:
    """``network`` as samplers call it, with these texts and the batch's conditions."""
    dtype = dtype_of(network)
    text, y = context_BSD.to(dtype), batch.condition_BCTHW
    y = None if y is None else y.to(dtype)
    return lambda x, timestep, expert: network(x, timestep, text, y)


def first_samples(source: Source, config: TrainConfig) -> Batch:
    """The first prompts of ``source``, each repeated for every seed, on the CPU."""
    slots = config.batch // config.micro_batch
    count = -(-config.sample_prompts // config.micro_batch)
    parts = [source.batch(*divmod(index, slots)) for index in range(count)]

    def joined(name: str) -> Tensor | None:
        values: list[Tensor | None] = [getattr(part, name) for part in parts]
        if values[0] is None or (name == "negative_BSD" and len(values[0]) == 1):
            return values[0]  # one for all
        every = torch.cat([v for v in values if v is not None])[: config.sample_prompts]
        return every.repeat_interleave(config.sample_seeds, dim=0)

    return Batch(**{one.name: joined(one.name) for one in fields(Batch)})  # type: ignore[arg-type]


def video_suffix() -> str:
    """``.mp4`` where it can be written, else ``.gif``.

    Raises:
        SetupError: neither PyAV nor Pillow is installed.
    """
    from turbodiffusion.media.libraries import import_av, import_pillow

    try:
        import_av()
        return ".mp4"
    except SetupError:
        import_pillow()
        return ".gif"


def open_vae(card: ModelCard, given: str, device: torch.device) -> WanVAE:
    """The autoencoder in ``given``, or the one that belongs to ``card``.

    Raises:
        UsageError: neither is there.
    """
    from turbodiffusion.errors import WeightsError
    from turbodiffusion.weights.find import find
    from turbodiffusion.weights.load import load_vae

    try:
        path = Path(given) if given else find(card.name, "vae").vae
        return load_vae(path, card.vae, device=device)
    except WeightsError as error:
        raise UsageError(
            "train-samples",
            f"Samples cannot be decoded: {error.message}",
            "Give the autoencoder with --set vae=FILE, or draw none with --set sample_every=0.",
        ) from error
