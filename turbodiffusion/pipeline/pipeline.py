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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import turbodiffusion
from turbodiffusion.errors import UsageError
from turbodiffusion.media.image import centre_crop, load_image, prepare_image
from turbodiffusion.media.video import Video
from turbodiffusion.pipeline.checks import check_image
from turbodiffusion.pipeline.request import SETTINGS, Request, resolve
from turbodiffusion.pipeline.stages import Stages
from turbodiffusion.sampling.loop import OnStep

OUTPUT_TYPES = ("video", "np", "pt", "pil", "latent")


@dataclass
class Frames:
    """The answer for an explicit ``output_type``."""

    frames: Any


class Pipeline(Stages):
    """A model that is ready to run; see :func:`turbodiffusion.load`."""

    def __call__(
        self,
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
        on_step: OnStep | None = None,
        **settings: Any,
    ) -> Any:
        """Make videos. ``None`` means the card's default everywhere.

        Args:
            height, width: pixels; rounded with a warning when they do not fit the networks.
            num_frames: stride·n+1 frames; otherwise, with a warning, ``n // stride * stride + 1``.
            num_inference_steps: 1–4 for distilled weights, any number for a baseline.
            guidance_scale: of the baseline; distilled weights take 1 (or nothing).
            generator: CPU generators, one or one for each video; otherwise video ``i`` draws from
                ``seed + i``, so it is the same whatever else is made with it.
            image: path, PIL image, array or tensor; the first frame of an image-to-video model.
            callback_on_step_end: called as ``f(pipeline, step, timestep, kwargs)`` with the
                ``"latents"`` estimate of the clean video, which it cannot replace. Setting
                ``pipeline._interrupt = True`` in it stops the run with :class:`Stopped`.
            on_step: ``f(done, total, t, clean_latents)``; returning False stops the run.
            settings: any other field of :class:`~turbodiffusion.pipeline.request.Request`, such as
                ``sigma_max``, ``ode``, ``boundary``, ``baseline``, ``shift``, ``solver``.

        Raises:
            UsageError: a value that cannot be used. Stopped: a callback ended the run.
        """
        _check_call(self, output_type, attention_kwargs, callback_on_step_end_tensor_inputs,
                    max_sequence_length, settings)  # fmt: skip
        prompts = _prompts(prompt, prompt_embeds, num_videos_per_prompt)
        negatives = _for_each(negative_prompt, prompts, num_videos_per_prompt, "negative prompts")
        given = {
            "width": width, "height": height, "frames": num_frames, "steps": num_inference_steps,
            "guidance": guidance_scale, "guidance_low": guidance_scale_2, "seed": seed,
        }  # fmt: skip
        twice = [k for k in settings if given.get(k) is not None]
        if twice:
            raise UsageError("call-twice", f"{', '.join(twice)} was given under two names.",
                             "Give each setting once.")  # fmt: skip
        first = resolve(Request(prompts[0], negatives[0], **{**given, **settings}), self.card,
                        fit="diffusers")  # fmt: skip
        requests = [
            replace(first, prompt=p, negative=first.negative if n is None else n, seed=seed + i)
            for i, (p, n) in enumerate(zip(prompts, negatives, strict=True))
        ]
        for request in requests[1:]:
            resolve(request, self.card)
        context = self._embeddings(prompt_embeds, prompts, num_videos_per_prompt)
        negative = None
        if first.guided:
            texts = [r.negative or "" for r in requests]
            negative = self._embeddings(negative_prompt_embeds, texts, num_videos_per_prompt)
        y = self.image_condition(image, first)
        generators = _generators(generator, len(requests))
        hook = _hook(self, on_step, callback_on_step_end)
        if latents is not None and len(latents) != len(requests):
            raise UsageError("call-latents",
                             f"{len(latents)} latents were given for {len(requests)} videos.",
                             "Give one for each.")  # fmt: skip
        out = []
        for i, request in enumerate(requests):
            one = slice(i, i + 1)
            out.append(
                self.denoise(
                    [request], context[one], None if negative is None else negative[one], y, hook,
                    generators[i], None if latents is None else latents[one],
                )
            )  # fmt: skip
        extra = {k: "given by the caller" for k, v in (
            ("latents", latents), ("generator", generator), ("prompt_embeds", prompt_embeds),
        ) if v is not None}  # fmt: skip
        if image is not None:
            extra["image"] = str(image) if isinstance(image, str | Path) else "given by the caller"
        return _answer(self, torch.cat(out), requests, output_type, return_dict, extra)

    def _embeddings(self, given: Tensor | None, texts: list[str], each: int) -> Tensor:
        """What the prompts are encoded to, one row for each video."""
        if given is None:
            # One at a time: a batch would round differently, and a video must not depend on others.
            known: dict[str, Tensor] = {}
            for text in texts:
                if text not in known:
                    known[text] = self.encode_prompts([text])
            return torch.cat([known[text] for text in texts])
        rows = given.repeat_interleave(each, 0) if len(given) * each == len(texts) else given
        rows = rows.expand(len(texts), *rows.shape[1:]) if len(rows) == 1 else rows
        wanted = (len(texts), self.card.text.text_len, self.card.text.dim)
        if rows.shape != wanted:
            raise UsageError(
                "call-embeds",
                f"Embeddings of shape {tuple(given.shape)} were given for {len(texts)} videos.",
                f"With one row for each prompt they must be {wanted}; encode_prompts makes them.",
            )
        return rows.to(self.device)

    def image_condition(self, image: Any, request: Request) -> Tensor | None:
        """The condition of ``image`` for a resolved request; checks that the model takes one."""
        check_image(image, self.card)
        if image is None:
            return None
        assert request.height and request.width and request.frames
        pixels = load_image(image)
        if self.card.embedded:  # its shapes would be others if they were stretched
            pixels = centre_crop(pixels, request.height, request.width)
        prepared = prepare_image(pixels, request.height, request.width)
        return self.condition(prepared, request.frames)

    def settings_of(self, request: Request) -> dict[str, Any]:
        """What is stored inside a video: the request, the model and the version."""
        dit = self.any_expert
        return {
            **request.settings(),
            "fps": self.card.fps,
            "model": self.card.name,
            "quantised": dit.quantized,
            "attention": dict(vars(dit.attention)),
            "precision": str(self.dit_dtype).removeprefix("torch."),
            "weights": self.identity.as_dict() if self.identity else {},
            "version": turbodiffusion.__version__,
        }


def _check_call(
    pipe: Pipeline, output_type: str, attention_kwargs: Any, tensor_inputs: list[str] | None,
    max_sequence_length: int | None, settings: dict[str, Any],
) -> None:  # fmt: skip
    """Arguments of diffusers that mean nothing here are refused, or said to be without effect."""
    if output_type not in OUTPUT_TYPES:
        raise UsageError("call-output-type", f"There is no output type {output_type!r}.",
                         f"Use one of {', '.join(OUTPUT_TYPES)}.")  # fmt: skip
    if attention_kwargs:
        raise UsageError("call-attention-kwargs", "attention_kwargs cannot be honoured here.",
                         "Choose attention when loading: load(..., attention=…).")  # fmt: skip
    if unknown := set(tensor_inputs or ()) - {"latents"}:
        raise UsageError("call-tensor-inputs", f"Step callbacks cannot be given {unknown}.",
                         'Only "latents" is available.')  # fmt: skip
    if unknown := set(settings) - set(SETTINGS):
        raise UsageError("call-setting", f"There is no setting {sorted(unknown)[0]!r}.",
                         f"Settings are {', '.join(SETTINGS)}.")  # fmt: skip
    text_len = pipe.card.text.text_len
    if max_sequence_length not in (None, text_len):
        warnings.warn(f"max_sequence_length is without effect: {pipe.card.name} reads {text_len} "
                      "tokens.", stacklevel=3)  # fmt: skip


def _prompts(prompt: Any, embeds: Tensor | None, each: int) -> list[str]:
    if not isinstance(each, int) or each < 1:
        raise UsageError("num-illegal", f"{each!r} is not a number of videos.", "Use 1 or more.")
    if embeds is not None:
        if prompt is not None:
            raise UsageError("prompt-twice", "Both a prompt and prompt_embeds were given.",
                             "Give one of the two.")  # fmt: skip
        prompt = ["(given as embeddings)"] * len(embeds)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
    if not prompts:
        raise UsageError("prompt-empty", "There is no prompt.", "Describe what to show.")
    return [p for p in prompts for _ in range(each)]


def _for_each(value: Any, prompts: list[str], each: int, what: str) -> list[Any]:
    """One value for all videos, or one for each prompt, as one for each video."""
    if not isinstance(value, list):
        return [value] * len(prompts)
    if len(value) * each != len(prompts):
        raise UsageError("call-count",
                         f"{len(value)} {what} were given for {len(prompts) // each} prompts.",
                         "Give one, or one for each prompt.")  # fmt: skip
    return [v for v in value for _ in range(each)]


def _generators(given: Any, count: int) -> list[torch.Generator | None]:
    if not isinstance(given, list):
        return [given] * count
    if len(given) != count:
        raise UsageError("sampling-generators",
                         f"{len(given)} generators were given for {count} videos.",
                         "Pass one generator a video, or a single one.")  # fmt: skip
    return given


def _hook(pipe: Pipeline, on_step: OnStep | None, callback: Any) -> OnStep | None:
    """One step callback out of ours and the one in diffusers' form."""
    if callback is None:
        return on_step
    pipe._interrupt = False

    def hook(done: int, total: int, t: float, clean: Callable[[], Tensor]) -> bool | None:
        latents = clean()
        answer = callback(pipe, done - 1, t * 1000, {"latents": latents})
        if isinstance(answer, dict) and answer.get("latents", latents) is not latents:
            raise UsageError("call-callback", "The step callback returned other latents.",
                             "They can be looked at here, not replaced.")  # fmt: skip
        go_on = on_step(done, total, t, clean) if on_step else None
        return False if pipe._interrupt else go_on

    return hook


def _answer(
    pipe: Pipeline, latents: Tensor, requests: list[Request], kind: str, as_object: bool,
    extra: dict[str, str],
) -> Any:  # fmt: skip
    shaped: Any
    if kind == "latent":
        shaped = latents
    elif kind in ("video", "pil"):
        # Decoded one by one, as alone: a video must not depend on the others of its batch.
        clips = [torch.cat(list(pipe.decode(one[None])), 1)[0].numpy() for one in latents]
        videos = [
            Video(clip, pipe.card.fps, {**pipe.settings_of(request), **extra})
            for clip, request in zip(clips, requests, strict=True)
        ]
        if kind == "video":
            answer = videos[0] if len(videos) == 1 else videos
            return answer if as_object else (answer,)
        shaped = [video.to_pil() for video in videos]
    else:
        floats = [torch.cat(list(pipe.decode_float(one[None])), 2) for one in latents]
        shaped = ((torch.cat(floats) + 1) / 2).clamp(0, 1).cpu().transpose(1, 2)  # B F C H W
        shaped = shaped if kind == "pt" else shaped.permute(0, 1, 3, 4, 2).numpy()
    return Frames(shaped) if as_object else (shaped,)
