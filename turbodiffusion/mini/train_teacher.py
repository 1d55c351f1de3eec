"""Stage 1: the slow teacher, by flow matching, with its text encoder learning beside it.

x_t = (1 − t)·x0 + t·noise with t bent towards noise by ``shift``; the network predicts
noise − x0. Empty captions in a share of the batch teach the unconditional branch of guidance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turbodiffusion.mini.data import LatentPool, pool_seed, step_seed
from turbodiffusion.mini.export import (
    find_part,
    finished,
    latents_id,
    load_embedded_vae,
    save_teacher,
    training_of,
    write_tokenizer,
)
from turbodiffusion.mini.optim import MasterOptimizer, learning_rate
from turbodiffusion.mini.recipe import SizeRecipe, TeacherRecipe
from turbodiffusion.mini.runtime import Worker, attention_kernels, compile_modules
from turbodiffusion.mini.state import Log, StageClock, restore, save_state
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.models.text_encoder import TextEncoder, Tokenizer
from turbodiffusion.sampling.schedule import model_timestep
from turbodiffusion.weights.load import load_dit, load_text_encoder

CHECK_EVERY = 8
LOSS_RATE = 0.02  # of the moving mean that is logged


class Teacher(nn.Module):
    """The network and the text encoder under one set of names."""

    def __init__(self, dit: WanDiT, text: TextEncoder) -> None:
        super().__init__()
        self.dit = dit
        self.text = text


def noisy_pair(
    x0_BCTHW: Tensor, shift: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """(x_t, velocity target, t (B, 1)) in float32 for a batch of clean latents."""
    noise = torch.randn(x0_BCTHW.shape, generator=generator, device=x0_BCTHW.device)
    u = torch.rand(x0_BCTHW.shape[0], 1, generator=generator, device=x0_BCTHW.device)
    t = shift * u / (1 + (shift - 1) * u)
    t_B1111 = t[:, :, None, None, None]
    return (1 - t_B1111) * x0_BCTHW + t_B1111 * noise, noise - x0_BCTHW, t


def build(size: SizeRecipe, worker: Worker) -> Teacher:
    """A freshly initialised teacher; the text encoder stays in float32 while it learns."""
    card = size.card
    torch.manual_seed(size.teacher.seed)
    dit = WanDiT(card.dit)
    dit.init_weights()
    text = TextEncoder(card.text)
    text.init_weights()
    return Teacher(dit.to(worker.device, worker.dtype), text.to(worker.device))


def block_matrices(model: Teacher) -> list[str]:
    """Names of the weight matrices inside the DiT's blocks."""
    return [
        name
        for name, p in model.named_parameters()
        if name.startswith("dit.blocks.") and p.ndim == 2
    ]


class TeacherRun:
    """The mutable parts of the stage, and its one step."""

    def __init__(self, size: SizeRecipe, folder: Path, worker: Worker) -> None:
        self.size, self.folder, self.worker = size, folder, worker
        self.recipe: TeacherRecipe = size.teacher
        self.model = build(size, worker)
        rate = self.recipe.matrix_lr
        self.optim = MasterOptimizer(
            self.model.named_parameters(),
            self.recipe,
            block_matrices(self.model) if rate else (),
            rate,
        )
        self.vae = load_embedded_vae(size, folder, worker)
        self.tokenizer = Tokenizer.from_file(write_tokenizer(size, folder), size.card.text.text_len)
        empty_ids, empty_mask = self.tokenizer([""])
        self.empty = empty_ids.to(worker.device), empty_mask.to(worker.device)
        compile_modules([*self.model.dit.blocks, self.model.dit.head], worker)
        self.pool: LatentPool | None = None

    def start_from(self, folder: Path) -> None:
        """Begin with weights that an earlier stage exported, with a fresh optimiser."""
        card = self.size.card
        dit = load_dit(find_part(self.size, folder, "t2v_teacher"), card)
        text = load_text_encoder(find_part(self.size, folder, "text"), card.text)
        self.model.dit.load_state_dict(dit.state_dict())
        self.model.text.load_state_dict(text.state_dict())
        self.optim.restart()

    def use_pool(self, frames: int, saved: dict[str, Any]) -> None:
        """Clips of ``frames`` frames, unless they are in use already.

        ``saved`` is the pool's state in an earlier run of the stage, or empty.
        """
        if self.pool is not None and self.pool.frames == frames:
            return
        seed = pool_seed(self.recipe, self.worker.rank, frames)
        self.pool = None  # frees the old one before the new one is made
        self.pool = LatentPool(
            self.recipe, self.vae, self.tokenizer, frames, self.size.card.height,
            self.worker.device, seed,
        )  # fmt: skip
        if saved.get("frames") == frames:
            self.pool.load_state_dict(saved)
        else:
            self.pool.fill()

    def loss(self, step: int, batch: int) -> Tensor:
        """Squared error of the predicted velocity on one drawn batch."""
        assert self.pool is not None
        seed = step_seed(self.recipe, step, self.worker.rank)
        generator = torch.Generator(self.worker.device).manual_seed(seed)
        x0, ids, mask = self.pool.draw(batch, generator)
        chance = torch.rand(batch, 1, generator=generator, device=x0.device)
        dropped = chance < self.recipe.drop
        ids = torch.where(dropped, self.empty[0], ids)
        mask = torch.where(dropped, self.empty[1], mask)
        x_t, target, t = noisy_pair(x0, self.recipe.shift, generator)
        context = self.model.text.encode(ids, mask, length=ids.shape[1])
        dtype = self.worker.dtype
        tokens = x0[0, 0].numel() // self.size.card.dit.patch_volume
        with attention_kernels(self.worker, tokens):
            out = self.model.dit(x_t.to(dtype), model_timestep(t), context.to(dtype))
        return (out.float() - target).square().mean()

    def export_module(self) -> Teacher:
        """The averaged weights in a module of the same kind."""
        self.optim.restore_average()
        self.model.eval()
        return self.model


def running_mean(mean: Tensor | None, loss: Tensor) -> Tensor:
    """The mean that is logged; the first loss starts it, and broken ones are left out."""
    if mean is None:
        return loss
    return mean.lerp(torch.where(loss.isfinite(), loss, mean), LOSS_RATE)


def train_teacher(
    size: SizeRecipe, folder: Path, worker: Worker, run_minutes: float | None = None,
    save_seconds: float = 60, *, init: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run or continue the stage; returns the report that is stored beside the weights.

    Writes ``teacher.state`` (resumable) and, after every run, ``<size>_t2v_teacher.safetensors``,
    ``<size>_text.safetensors`` with the moving average, so that an unfinished teacher can be tried.
    A stage that has not begun starts from the weights in ``init``, if that is given.
    """
    run = TeacherRun(size, folder, worker)
    recipe = run.recipe
    clock = StageClock(recipe, run_minutes, save_seconds)
    log = Log(folder / "teacher.jsonl", worker.rank > 0)
    state_file = folder / "teacher.state"
    latents = latents_id(run.vae)
    state = restore(state_file, run.optim, clock, latents)
    if worker.agree(clock.done) and (report := finished(size, folder, "teacher")):
        return report
    after: dict[str, Any] | None = state.get("after")
    if init is not None and not state:
        run.start_from(init)
        after = training_of(find_part(size, init, "t2v_teacher"))
    samples, opening = int(state.get("samples", 0)), bool(state.get("opening", False))
    mean_loss: Tensor | None = state.get("loss")
    if mean_loss is not None:
        mean_loss = mean_loss.to(worker.device)

    def save() -> None:
        if worker.rank == 0:
            values = {
                "step": clock.step, "seconds": clock.elapsed, "samples": samples,
                "opening": opening, "loss": mean_loss,
                "pool": run.pool.state_dict() if run.pool else {},
                "after": after, "latents": latents,
            }  # fmt: skip
            save_state(state_file, {"optim": run.optim.state_dict(), **values})

    while clock.step < recipe.steps:
        # Processes compare clocks now and then only: each comparison waits for the device.
        check = clock.step % CHECK_EVERY == 0
        if check and worker.agree(clock.done or clock.pause):
            break
        if check and recipe.opening is not None:
            opening = worker.agree(clock.progress < recipe.opening.share)
        part = recipe.opening if opening and recipe.opening is not None else None
        if check or run.pool is None:  # a kill may have come between two checks
            run.use_pool(part.frames if part else size.card.frames, state.get("pool", {}))
        batch = part.batch if part else recipe.batch
        loss = run.loss(clock.step, batch)
        loss.backward()
        norm = run.optim.step(learning_rate(recipe, clock.step, clock.progress))
        mean_loss = running_mean(mean_loss, loss.detach())
        samples += batch * worker.world
        assert run.pool is not None
        run.pool.refresh()
        clock.step += 1
        if clock.step % 100 == 0 and worker.rank == 0:
            log.write(
                stage="teacher", step=clock.step, loss=float(mean_loss), grad=norm.item(),
                samples=samples, pool=run.pool.added, seconds=clock.elapsed, run=clock.run_elapsed,
                progress=clock.progress,
            )  # fmt: skip
        if clock.due():
            save()
    save()
    last = None if mean_loss is None else float(mean_loss)
    report = worker.report(recipe, clock, samples=samples, loss=last)
    report["complete"] = worker.agree(clock.done)
    if after is not None:
        report["after"] = after
    model = run.export_module()
    if worker.rank == 0:
        save_teacher(size, model.dit, model.text, report, folder)
    return report
