"""The networks that the rows of the quality table run, each loaded once and sharing the rest.

All rows start from the same noise: a prompt's generator is seeded by its number, on the CPU, and a
student's fresh noise comes from the same generator, as in `turbodiffusion generate`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from turbodiffusion.mini.data import chunk_of
from turbodiffusion.mini.export import find_part, size_name
from turbodiffusion.mini.recipe import SizeRecipe
from turbodiffusion.mini.rows import BY_NAME, Row, available
from turbodiffusion.models.cards import CARDS, Attention, ModelCard
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.models.text_encoder import TextEncoder, Tokenizer
from turbodiffusion.models.vae import WanVAE
from turbodiffusion.pipeline.load import pick_device
from turbodiffusion.pipeline.pipeline import Pipeline
from turbodiffusion.pipeline.request import Request, resolve
from turbodiffusion.sampling.loop import Velocity
from turbodiffusion.sampling.noise import draw_noise
from turbodiffusion.sampling.rcm import sample_rcm
from turbodiffusion.weights.load import load_dit, load_text_encoder, load_vae


def student_card(size: SizeRecipe) -> ModelCard:
    """The few-step card of an embedded size."""
    card = CARDS.get(size_name(size), size.card)
    return card if card.few_step else replace(card, few_step=True)


class Networks:
    """Autoencoder, text encoder and DiTs of one embedded size, read when they are first needed.

    Args:
        folder: where files are looked for before the package.
        device: default the first GPU, else the CPU, on which everything computes in float32.
        topk: share of key blocks of the sparse rows; default the card's.
    """

    def __init__(
        self, size: SizeRecipe, folder: Path | None, device: str | None, topk: float | None = None
    ) -> None:
        self.size, self.card, self.topk = size, size.card, topk
        self.folder, self.device = folder, pick_device(device)
        self._on_cpu = self.device.type == "cpu"
        self._dtype = torch.float32 if self._on_cpu else None
        self.files = {"vae": find_part(size, folder, "vae")}
        self._pipelines: dict[tuple[str, str, bool], Pipeline] = {}
        if not self._on_cpu:
            torch.backends.cudnn.benchmark = True  # few shapes, many batches
        # The precisions of a whole pipeline, see pipeline.load.
        self.vae: WanVAE = load_vae(
            self.files["vae"], self.card.vae, self.device, self._dtype or torch.bfloat16
        )

    @cached_property
    def text_encoder(self) -> TextEncoder:
        self.files["text_encoder"] = find_part(self.size, self.folder, "text")
        path = self.files["text_encoder"]
        return load_text_encoder(path, self.card.text, self.device, self._dtype)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        self.files["tokenizer"] = find_part(self.size, self.folder, "tokenizer")
        return Tokenizer.from_file(self.files["tokenizer"], self.card.text.text_len)

    def pipeline(self, row: Row) -> Pipeline:
        """The network of a row with the shared parts around it."""
        key = row.part, row.attention, row.untuned
        if key not in self._pipelines:
            path = find_part(self.size, self.folder, row.part)
            self.files["dit" if row.part == "t2v_teacher" else row.part] = path
            card = student_card(self.size) if row.few_step else self.card
            attention = card.attention.with_topk(self.topk)
            if row.attention != "own":
                attention = replace(attention, kind=row.attention)
            card = replace(card, attention=attention)
            load_as = replace(attention, kind="dense") if row.untuned else attention
            asked = None if row.attention == "own" else load_as  # None: as the file is
            dit = load_dit(path, card, asked, self.device, self._dtype)
            if row.untuned:
                dit = with_zero_projection(dit, attention)
            self._pipelines[key] = Pipeline(
                card, {"": dit}, self.vae, self.text_encoder, self.tokenizer, device=self.device
            )
        return self._pipelines[key]

    @torch.no_grad()
    def encode(self, video_BCFHW: Tensor) -> Tensor:
        """Latents of clips in [−1, 1], float32."""
        chunk = chunk_of(self.card.frames, self.card.height)
        parts = video_BCFHW.split(chunk)
        return torch.cat([self.vae.encode_parallel(p.to(self.vae.dtype)).float() for p in parts])

    @torch.no_grad()
    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """Clips (B, 3, F, H, W) of latents, float32 clamped to [−1, 1] as they are shown.

        A GPU takes whole clips at once; a CPU goes frame by frame, which keeps its memory small.
        """
        latent = latent_BCTHW.to(self.device, self.vae.dtype)
        if self._on_cpu:
            return self.vae.decode(latent).float().clamp(-1, 1)
        chunk = 2 * chunk_of(self.card.frames, self.card.height)
        parts = [self.vae.decode_parallel(part) for part in latent.split(chunk)]
        return torch.cat(parts).float().clamp_(-1, 1)


def open_row(
    size: SizeRecipe, folder: Path | None, device: str | None, name: str | None = None
) -> Pipeline:
    """The network of a row, from ``folder`` or the packaged one.

    Built from its parts rather than by name, so that weights of an unfinished training run in any
    folder can be seen.

    Args:
        name: of the row; None: the student that ships, or the teacher where there is none yet.

    Raises:
        WeightsError: the file of the row is missing.
    """
    if name is None:
        shipped = available(BY_NAME["student-4"], size, folder)
        name = "student-4" if shipped else "teacher"
    return Networks(size, folder, device).pipeline(BY_NAME[name])


def with_zero_projection(dit: WanDiT, attention: Attention) -> WanDiT:
    """A dense network with sparse-linear attention whose linear branch gives nothing yet: where
    the tuning for it starts."""
    sparse = WanDiT(dit.config, attention).to(next(dit.parameters()).device, dit.dtype)
    missing, surplus = sparse.load_state_dict(dit.state_dict(), strict=False, assign=True)
    wrong = [name for name in missing if ".proj_l." not in name] + surplus
    if wrong:
        raise RuntimeError(f"the two forms of the network differ in {wrong[:3]}")
    return sparse.eval().requires_grad_(False)


def requests_of(
    pipe: Pipeline, row: Row | None, prompts: list[str], seeds: list[int], steps: int | None = None,
    guidance: float | None = None,
) -> list[Request]:  # fmt: skip
    """Resolved requests of a row; without a row, the card's own sampler."""
    if row is not None:
        steps = row.steps or steps
        guidance = None if row.few_step else guidance if row.guided else 1.0
    return [
        resolve(Request(prompt, seed=seed, steps=steps, guidance=guidance), pipe.card)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def network_calls(request: Request) -> int:
    """Calls of the network that a resolved request takes, both branches of guidance counted."""
    assert request.steps is not None
    return request.steps * (2 if request.guided else 1)


@torch.no_grad()
def sample_latents(
    pipe: Pipeline, requests: list[Request], context_BSD: Tensor, negative_BSD: Tensor | None,
    watch: Callable[[Velocity], Velocity] | None = None,
) -> Tensor:  # fmt: skip
    """Latents of resolved requests that differ in prompt and seed only, all in one batch.

    The numbers are those of :meth:`Pipeline.denoise` to rounding, which samples a student's videos
    one by one. ``watch`` wraps the student's network.
    """
    first = requests[0]
    if first.baseline:
        return pipe.denoise(requests, context_BSD, negative_BSD if first.guided else None)
    assert first.steps and first.sigma_max and first.frames and first.height and first.width
    dit = pipe.any_expert
    text = dit.text_kv(context_BSD)

    def velocity(x: Tensor, timestep_B1: Tensor, expert: str) -> Tensor:
        return dit(x, timestep_B1, None, None, text_kv=text)

    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    shape = pipe.card.latent_shape(first.frames, first.height, first.width)
    noise = draw_noise((len(requests), *shape), generators).to(pipe.device)
    return sample_rcm(
        watch(velocity) if watch else velocity, noise, num_steps=first.steps,
        sigma_max=first.sigma_max, ode=first.ode, generator=generators, model_dtype=pipe.dit_dtype,
    )  # fmt: skip
