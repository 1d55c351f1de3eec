"""The stages of a run, prompt (and image) to frames: where networks and samplers meet.

They are separate methods (`encode_prompts`, `condition`, `denoise`, `decode`), so that the command
line can stream frames into a file while later ones decode, and the judge can run batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.errors import SetupError, UsageError
from turbodiffusion.media.write import to_uint8
from turbodiffusion.memory.offload import Residency
from turbodiffusion.memory.tiling import decode_tiled, encode_tiled
from turbodiffusion.models.cards import ModelCard
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.models.text_encoder import TextEncoder, Tokenizer
from turbodiffusion.models.vae import WanVAE
from turbodiffusion.pipeline.identity import WeightIdentity
from turbodiffusion.pipeline.request import Request
from turbodiffusion.sampling.flow import sample_flow
from turbodiffusion.sampling.loop import OnStep
from turbodiffusion.sampling.noise import draw_noise
from turbodiffusion.sampling.rcm import sample_rcm


def with_mask(latent_BZTHW: Tensor, condition_dim: int) -> Tensor:
    """Condition (B, condition_dim, T, H, W): mask channels, one on the first latent frame and zero
    after it, before the latents of the image's clip."""
    b, z, *grid = latent_BZTHW.shape
    mask = latent_BZTHW.new_zeros(b, condition_dim - z, *grid)
    mask[:, :, 0] = 1
    return torch.cat([mask, latent_BZTHW], 1)


class Stages:
    """The networks of one card on one device.

    Args:
        card: names, sizes and defaults.
        experts: expert name → network; ``{"": dit}`` for a single one.
        vae, text_encoder, tokenizer: the other parts.
        device: where they compute.
        identity: file names and hashes of the weights, stored with every video.
        swap: see :class:`turbodiffusion.memory.offload.Residency`.
    """

    def __init__(
        self, card: ModelCard, experts: dict[str, WanDiT], vae: WanVAE, text_encoder: TextEncoder,
        tokenizer: Tokenizer, *, device: torch.device, identity: WeightIdentity | None = None,
        swap: bool | None = None,
    ) -> None:  # fmt: skip
        if set(experts) != set(card.experts):
            raise SetupError(
                "pipeline-experts",
                f"{card.name} needs the experts {card.experts}, got {tuple(experts)}.",
                "Give one checkpoint for each.",
            )
        self.card, self.experts, self.vae = card, experts, vae
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.device = device
        self.identity = identity
        self.tile = 0
        """Side of the tiles that the autoencoder works on, in latent cells; 0: whole frames."""
        self._interrupt = False
        self.residency = Residency(device, swap)
        for module in (*experts.values(), vae, text_encoder):
            self.residency.register(module.eval().requires_grad_(False))

    @property
    def dit_dtype(self) -> torch.dtype:
        """Precision of the activations between blocks."""
        return self.any_expert.dtype

    @property
    def any_expert(self) -> WanDiT:
        """One of the networks; they differ in weights only."""
        return next(iter(self.experts.values()))

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """(B, text_len, text_dim) on the device; rows past each prompt are zero."""
        ids, mask = self.tokenizer(prompts)
        self.residency.use(self.text_encoder)
        return self.text_encoder.encode(ids.to(self.device), mask.to(self.device))

    @torch.no_grad()
    def condition(self, image_CHW: Tensor, frames: int) -> Tensor:
        """Mask and first-frame latents (1, condition_dim, T, H, W) of an image in [−1, 1].

        The clip that is encoded is the image followed by mid-grey frames; the mask is one on the
        first latent frame. ``image_CHW`` has the height and width of the video.
        """
        card = self.card
        _, height, width = image_CHW.shape
        clip = torch.zeros(1, 3, frames, height, width, dtype=self.vae.dtype, device=self.device)
        clip[0, :, 0] = image_CHW.to(clip)
        self.residency.use(self.vae)
        latent = encode_tiled(self.vae, clip, self.tile) if self.tile else self.vae.encode(clip)
        return with_mask(latent, card.dit.condition_dim).to(self.dit_dtype)

    @torch.no_grad()
    def denoise(
        self, requests: list[Request], context_BSD: Tensor, negative_BSD: Tensor | None = None,
        y_BCTHW: Tensor | None = None, on_step: OnStep | None = None,
        generator: torch.Generator | None = None, latents: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Latents (B, z, T, H, W) float32 of resolved requests that differ in prompt and seed only.

        Video ``i`` draws from its own CPU generator seeded with ``requests[i].seed``, so it does
        not depend on the others of the batch. ``generator`` replaces those; ``latents`` the noise.
        """
        first = requests[0]
        assert first.frames and first.height and first.width
        shape = self.card.latent_shape(first.frames, first.height, first.width)
        generators = [
            generator if generator is not None else torch.Generator().manual_seed(r.seed)
            for r in requests
        ]
        # Drawn even if replaced: the fresh noise of later steps must not repeat the start noise.
        drawn = torch.cat([draw_noise((1, *shape), g) for g in generators])
        if latents is None:
            latents = drawn
        elif latents.shape != (len(requests), *shape):
            raise UsageError(
                "call-latents",
                f"Latents of shape {tuple(latents.shape)} were given for {len(requests)} videos.",
                f"They must be {(len(requests), *shape)}.",
            )
        noise = latents.float().to(self.device)
        if first.baseline:
            return self._denoise_flow(first, noise, context_BSD, negative_BSD, y_BCTHW, on_step)
        assert first.steps and first.sigma_max
        parts = []
        for i, own in enumerate(generators):
            y = None if y_BCTHW is None else y_BCTHW[min(i, len(y_BCTHW) - 1)][None]
            velocity = self._velocity(context_BSD[i : i + 1], y)
            parts.append(
                sample_rcm(
                    velocity, noise[i : i + 1], num_steps=first.steps, sigma_max=first.sigma_max,
                    ode=first.ode, boundary=first.boundary if len(self.experts) > 1 else None,
                    generator=own, on_step=on_step, model_dtype=self.dit_dtype,
                )
            )  # fmt: skip
        return torch.cat(parts)

    def _velocity(self, context_BSD: Tensor, y_BCTHW: Tensor | None) -> Callable[..., Tensor]:
        """The network as the samplers call it; text keys and values are computed once."""
        text: dict[str, Any] = {}
        context = context_BSD.to(self.dit_dtype)

        def velocity(x: Tensor, timestep_B1: Tensor, expert: str) -> Tensor:
            dit = self.experts[expert]
            self.residency.use(dit)  # at every call: a step callback may have used the VAE
            y = None if y_BCTHW is None else y_BCTHW.expand(len(x), *y_BCTHW.shape[1:])
            if self.residency.streams(dit):  # a block's weights are here during its call only
                return dit(x, timestep_B1, context, y)
            if expert not in text:
                text.clear()
                text[expert] = dit.text_kv(context)
            return dit(x, timestep_B1, None, y, text_kv=text[expert])

        return velocity

    def _denoise_flow(
        self, request: Request, noise: Tensor, context_BSD: Tensor, negative_BSD: Tensor | None,
        y_BCTHW: Tensor | None, on_step: OnStep | None,
    ) -> Tensor:  # fmt: skip
        """The unaccelerated sampler. Both branches of guidance run as one batch on small cards."""
        assert request.guidance is not None and request.steps and request.shift
        guided = request.guided
        options: dict[str, Any] = {}
        if guided and negative_BSD is None:
            raise UsageError("guidance-negative", "Guidance needs a negative prompt encoding.",
                             "Encode the negative prompt, or use guidance 1.")  # fmt: skip
        if guided and self.card.embedded:
            assert negative_BSD is not None
            both = torch.cat([context_BSD, negative_BSD.expand_as(context_BSD)])
            joined = self._velocity(both, y_BCTHW)

            def pair(x: Tensor, t: Tensor, expert: str) -> tuple[Tensor, Tensor]:
                cond, uncond = joined(torch.cat([x, x]), torch.cat([t, t]), expert).chunk(2)
                return cond, uncond

            options["velocity_pair"] = pair
        cond = self._velocity(context_BSD, y_BCTHW)
        uncond = None
        if guided and negative_BSD is not None:
            uncond = self._velocity(negative_BSD.expand_as(context_BSD), y_BCTHW)
        guidance: Any = request.guidance
        if len(self.experts) > 1 and request.guidance_low is not None:
            guidance = {"high": request.guidance, "low": request.guidance_low}
        return sample_flow(
            cond, uncond, noise, steps=request.steps, shift=request.shift, guidance=guidance,
            solver="euler" if request.solver == "euler" else "unipc", on_step=on_step,
            model_dtype=self.dit_dtype, convention="rcm" if self.card.embedded else "wan",
            boundary=request.boundary if len(self.experts) > 1 else None, **options,
        )  # fmt: skip

    @torch.no_grad()
    def reconstruct(self, video_BCFHW: Tensor) -> Tensor:
        """Through the autoencoder and back, float32 in the range it produces."""
        self.residency.use(self.vae)
        return self.vae.decode(self.vae.encode(video_BCFHW.to(self.device, self.vae.dtype))).float()

    @torch.no_grad()
    def decode_float(self, latent_BZTHW: Tensor) -> Iterator[Tensor]:
        """Frames (B, 3, n, H, W), float32 around [−1, 1], as they come: one, then a few at a
        time."""
        self.residency.use(self.vae)
        latent = latent_BZTHW.to(self.device, self.vae.dtype)
        frames = self.vae.decode_frames(latent)
        if self.tile:
            frames = decode_tiled(self.vae, latent, self.tile)
        for part in frames:
            yield part.float()

    def decode(self, latent_BZTHW: Tensor) -> Iterator[Tensor]:
        """uint8 frames (B, n, H, W, 3) on the CPU as they come."""
        for part in self.decode_float(latent_BZTHW):
            yield to_uint8(part).cpu()
