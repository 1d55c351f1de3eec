"""Stage 0: the embedded autoencoder, trained on rendered crops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from turbodiffusion.mini import data
from turbodiffusion.mini.export import (
    find_part,
    finished,
    latents_id,
    load_embedded_vae,
    save_vae,
    training_of,
)
from turbodiffusion.mini.optim import MasterOptimizer, learning_rate
from turbodiffusion.mini.recipe import SizeRecipe, VAERecipe
from turbodiffusion.mini.runtime import Worker
from turbodiffusion.mini.state import Log, StageClock, restore, save_state
from turbodiffusion.models.vae import WanVAE

STAT_CLIPS = 2048
STAT_SEED = 7_000_000


def vae_loss(
    vae: WanVAE, video_BCFHW: Tensor, kl: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(loss, squared error) of one batch in [−1, 1]; the latent is drawn from the posterior.

    The KL term is the mean over latent elements against N(0, 1). The autoencoder must not rescale
    its latents yet: their statistics are measured when training is over.
    """
    mu, logvar = vae.encode_moments(video_BCFHW)
    mu, logvar = mu.float(), logvar.float().clamp(-30, 20)
    noise = torch.randn(mu.shape, generator=generator, device=mu.device)
    z = mu + noise * (0.5 * logvar).exp()
    out = vae.decode_parallel(z.to(video_BCFHW.dtype)).float()
    target = video_BCFHW.float()
    square = F.mse_loss(out, target)
    divergence = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean()
    return F.l1_loss(out, target) + square + kl * divergence, square


@torch.no_grad()
def latent_stats(vae: WanVAE, frames: int, size: int, worker: Worker) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every latent channel over rendered clips."""
    total = square = torch.zeros((), dtype=torch.float64, device=worker.device)
    count = 0.0
    chunk = data.chunk_of(frames, size)
    for first in range(0, STAT_CLIPS, chunk):
        n = min(chunk, STAT_CLIPS - first)
        video = data.clips(n, STAT_SEED + first, frames, size, worker.device)
        mu = vae.encode_moments(video.to(worker.dtype))[0].double()
        total = total + mu.sum((0, 2, 3, 4))
        square = square + mu.square().sum((0, 2, 3, 4))
        count += mu.numel() / mu.shape[1]
    mean = total / count
    return mean.float().cpu(), (square / count - mean.square()).sqrt().float().cpu()


def channels_last(vae: WanVAE) -> None:
    """Lay the weights out as cuDNN's half-precision convolutions want them; values stay."""
    for parameter in vae.parameters():
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(parameter.ndim)
        if layout:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def _start(
    size: SizeRecipe, folder: Path, worker: Worker, stage: str
) -> tuple[WanVAE, dict[str, Any]]:
    """The autoencoder that the stage begins with, and what its report inherits.

    Latents are not scaled while an autoencoder learns; the file's statistics stay in its metadata.
    """
    if stage == "vae":
        vae = WanVAE(size.card.vae)
        vae.init_weights()
        return vae.to(worker.device, worker.dtype), {}
    vae = load_embedded_vae(size, folder, worker)
    scaling = {"latent_mean": vae.config.latent_mean, "latent_std": vae.config.latent_std}
    vae.set_latent_stats([0.0] * size.card.vae.z_dim, [1.0] * size.card.vae.z_dim)
    for part in (vae.decoder, vae.conv2):
        part.requires_grad_(True)
    before = training_of(find_part(size, folder, "vae"))
    return vae, {**{k: list(v) for k, v in scaling.items()}, "after": before}


def train_vae(
    size: SizeRecipe, folder: Path, worker: Worker, run_minutes: float | None = None,
    save_seconds: float = 60, *, stage: str = "vae",
) -> dict[str, Any]:  # fmt: skip
    """Run or continue the stage; returns the report that is stored beside the weights.

    Writes ``<stage>.state`` (resumable) and ``<size>_vae.safetensors`` when the stage is complete.
    Stage ``"decoder"`` starts from that file and leaves its encoder as it is, so that networks
    trained on its latents stay valid.
    """
    recipe: VAERecipe = getattr(size, stage)
    card = size.card
    torch.manual_seed(recipe.seed)
    vae, before = _start(size, folder, worker, stage)
    if worker.device.type == "cuda":
        channels_last(vae)
    learning = ((n, p) for n, p in vae.named_parameters() if p.requires_grad)
    optim = MasterOptimizer(learning, recipe)
    clock = StageClock(recipe, run_minutes, save_seconds)
    log = Log(folder / f"{stage}.jsonl", worker.rank > 0)
    state_file = folder / f"{stage}.state"
    # Refining a decoder depends on the encoder that it belongs to.
    latents = "" if stage == "vae" else latents_id(vae)
    restore(state_file, optim, clock, latents)
    if worker.agree(clock.done) and (report := finished(size, folder, stage)):
        return report

    def save() -> None:
        if worker.rank == 0:
            values = {"step": clock.step, "seconds": clock.elapsed, "latents": latents}
            save_state(state_file, {"optim": optim.state_dict(), **values})

    generator = torch.Generator(worker.device)
    while not worker.agree(clock.done or clock.pause):
        batch = data.vae_batch(
            recipe, clock.step, worker.rank, card.frames, card.height, worker.device
        ).to(worker.dtype)
        if worker.device.type == "cuda":
            batch = batch.contiguous(memory_format=torch.channels_last_3d)
        generator.manual_seed(data.step_seed(recipe, clock.step, worker.rank))
        loss, square = vae_loss(vae, batch, recipe.kl, generator)
        loss.backward()
        norm = optim.step(learning_rate(recipe, clock.step, clock.progress))
        if clock.step % 100 == 0 and worker.rank == 0:
            psnr = -10 * math.log10(max(square.item() / 4, 1e-12))
            log.write(
                stage=stage, step=clock.step, loss=loss.item(), psnr=psnr, grad=norm.item(),
                seconds=clock.elapsed, progress=clock.progress,
            )  # fmt: skip
        clock.step += 1
        if clock.due():
            save()
    save()
    if not worker.agree(clock.done):
        return {"complete": False, "step": clock.step, "seconds": clock.elapsed}

    report = {"stage": stage, **worker.report(recipe, clock)}
    optim.restore_average()
    vae.eval()
    if stage == "vae":
        mean, std = latent_stats(vae, card.frames, card.height, worker)
        before = {"latent_mean": mean.tolist(), "latent_std": std.tolist()}
    report |= before
    if worker.rank == 0:
        save_vae(size, vae, report, folder)
    worker.wait_for_all()  # no process may look for the file before it is there
    return report
