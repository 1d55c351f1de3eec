"""Calling a pipeline: argument names and rules that users of diffusers know, with a few more.

One prompt gives a :class:`~turbodiffusion.media.Video`, several give a list of them. With an
explicit ``output_type`` the answer is shaped as theirs is: an object whose one field ``frames`` is
batch × frames × height × width × channel in [0, 1] (``"np"``), batch × frames × channel × height ×
width (``"pt"``), nested lists of images (``"pil"``) or the latents (``"latent"``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import turbodiffusion
from turbodiffusion.errors import UsageError
from turbodiffusion.pipeline.request import Request, resolve

if TYPE_CHECKING:
    from turbodiffusion.pipeline.pipeline import Pipeline

OUTPUT_TYPES = ("video", "np", "pt", "pil", "latent")


@dataclass
class Frames:
    """The answer for an explicit ``output_type``."""

    frames: Any


class DiffusersCall:
    """The call of :class:`~turbodiffusion.pipeline.pipeline.Pipeline`."""

    def __call__(
        self: Pipeline,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_scale_2: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "video",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        max_sequence_length: int | None = None,
        *,
        image: Any = None,
        seed: int = 0,
        on_step: Callable[..., bool | None] | None = None,
        **settings: Any,
    ) -> Any:
        """Make videos. ``None`` means the card's default everywhere.

        Args:
            height, width: pixels; rounded with a warning when they do not fit the networks.
            num_frames: stride·n+1 frames, rounded down with a warning otherwise.
            num_inference_steps: 1–4 for distilled weights, any number for a baseline.
            guidance_scale: of the baseline; distilled weights take 1 (or nothing).
            generator: CPU generators, one or one for each video; otherwise video ``i`` draws from
                ``seed + i``, so it is the same whatever else is made with it.
            image: path, PIL image, array or tensor; the first frame of an image-to-video model.
            callback_on_step_end: called as ``f(pipeline, step, timestep, kwargs)`` with the
                ``"latents"`` estimate of the clean video, read only. Setting
                ``pipeline._interrupt = True`` in it stops the run with :class:`Stopped`.
            on_step: ``f(done, total, t, clean_latents)``; returning False stops the run.
            settings: any other field of :class:`~turbodiffusion.pipeline.request.Request`, such as
                ``sigma_max``, ``ode``, ``boundary``, ``baseline``, ``shift``, ``solver``.

        Raises:
            UsageError: a value that cannot be used. Stopped: a callback ended the run.
        """
        if output_type not in OUTPUT_TYPES:
            raise UsageError("call-output-type", f"There is no output type {output_type!r}.",
                             f"Use one of {', '.join(OUTPUT_TYPES)}.")  # fmt: skip
        if attention_kwargs:
            raise UsageError("call-attention-kwargs", "attention_kwargs cannot be honoured here.",
                             "Choose attention when loading: load(..., attention=…).")  # fmt: skip
        prompts = _prompts(prompt, prompt_embeds, num_videos_per_prompt)
        negatives = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt]
        common = resolve(
            Request(
                prompts[0], negatives[0] or "", width, height, num_frames, num_inference_steps,
                seed, guidance=guidance_scale, guidance_low=guidance_scale_2, **settings,
            ),
            self.card, strict=False,
        )  # fmt: skip
        if not common.baseline and guidance_scale not in (None, 1.0):
            warnings.warn(f"guidance_scale {guidance_scale} has no effect on distilled weights.",
                          stacklevel=2)  # fmt: skip
        requests = [replace(common, prompt=p, seed=seed + i) for i, p in enumerate(prompts)]
        context = self.encode_prompts(prompts) if prompt_embeds is None else _repeat(
            prompt_embeds, len(prompts)
        ).to(self.device)  # fmt: skip
        negative = negative_prompt_embeds
        if common.baseline and negative is None:
            negative = self.encode_prompts([n or "" for n in negatives])
        y = self.image_condition(image, common)
        hook = _hook(self, on_step, callback_on_step_end)
        out = []
        for i, request in enumerate(requests):
            one = generator[i] if isinstance(generator, list) else generator
            low = None if negative is None else negative[min(i, len(negative) - 1)][None]
            noise = None if latents is None else latents[min(i, len(latents) - 1)][None]
            out.append(self.denoise([request], context[i : i + 1], low, y, hook, one, noise))
        return _answer(self, torch.cat(out), requests, output_type, return_dict)

    def image_condition(self: Pipeline, image: Any, request: Request) -> Tensor | None:
        """The condition of ``image`` for a resolved request; checks that the model takes one."""
        if image is None:
            if self.card.task == "i2v":
                raise UsageError("image-missing", f"{self.card.name} animates an image; none came.",
                                 "Give one with --image FILE (image=… in Python).")  # fmt: skip
            return None
        if self.card.task != "i2v":
            raise UsageError("image-unused", f"{self.card.name} takes no image.",
                             "Leave the image out, or use an image-to-video model such as "
                             "TurboWan2.2-I2V-A14B-720P.")  # fmt: skip
        from turbodiffusion.media import load_image, prepare_image

        assert request.height and request.width and request.frames
        prepared = prepare_image(load_image(image), request.height, request.width)
        return self.condition(prepared, request.frames)

    def settings_of(self: Pipeline, request: Request) -> dict[str, Any]:
        """What is stored inside a video: the request, the model and the version."""
        return {
            **request.settings(),
            "fps": self.card.fps,
            "model": self.card.name,
            "attention": vars(next(iter(self.experts.values())).attention),
            "weights": self.identity,
            "version": turbodiffusion.__version__,
        }


def _prompts(prompt: Any, embeds: Tensor | None, per_prompt: int) -> list[str]:
    if prompt is None and embeds is None:
        raise UsageError("prompt-empty", "There is no prompt.", "Describe what to show.")
    if prompt is None:
        assert embeds is not None
        prompt = ["(given as embeddings)"] * len(embeds)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    return [p for p in prompts for _ in range(per_prompt)]


def _repeat(embeds: Tensor, count: int) -> Tensor:
    return embeds.repeat_interleave(count // len(embeds), 0)


def _hook(pipe: Pipeline, on_step: Any, callback: Any) -> Callable[..., bool | None] | None:
    """One step callback out of ours and the one in diffusers' form."""
    if callback is None:
        return on_step
    pipe._interrupt = False

    def hook(done: int, total: int, t: float, clean: Any) -> bool | None:
        callback(pipe, done - 1, t * 1000, {"latents": clean()})
        go_on = on_step(done, total, t, clean) if on_step else None
        return False if pipe._interrupt else go_on

    return hook


def _answer(pipe: Pipeline, latents: Tensor, requests: list[Request], kind: str, as_object: bool):
    from turbodiffusion.media import Video

    if kind == "latent":
        return Frames(latents) if as_object else (latents,)
    frames = torch.cat(list(pipe.decode(latents)), 1)
    if kind == "video":
        videos = [
            Video(clip.numpy(), pipe.card.fps, pipe.settings_of(request))
            for clip, request in zip(frames, requests, strict=True)
        ]
        answer: Any = videos[0] if len(videos) == 1 else videos
        return answer if as_object else (answer,)
    shaped: Any
    if kind == "pil":
        shaped = [Video(clip.numpy(), pipe.card.fps).to_pil() for clip in frames]
    else:
        shaped = frames.float() / 255
        shaped = shaped.permute(0, 1, 4, 2, 3) if kind == "pt" else shaped.numpy()
    return Frames(shaped) if as_object else (shaped,)
