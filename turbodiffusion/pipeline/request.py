"""What is asked of a pipeline, checked against the card before any work is done."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import ModelCard
from turbodiffusion.pipeline.checks import check_types, check_values

ROPE_LIMIT = 128
"""Positions per axis that the rotary table of the released networks knows."""

NEGATIVE = (
    "overexposed, washed out, static picture, subtitles, watermark, low quality, jpeg artefacts, "
    "blurry, deformed hands and faces, extra limbs, cluttered background, walking backwards"
)
"""What the baseline of a released model steers away from unless told otherwise. Our own words: the
original's list is Chinese and part of its configuration."""

Fit = Literal["refuse", "diffusers", "released"]
"""What happens to a frame count or size that does not fit: an error with the nearest legal value,
or a warning and the value that users of diffusers (80 → 81) or of the released scripts (80 → 77)
expect."""


@dataclass(frozen=True)
class Request:
    """One video to make. ``None`` means the card's default.

    Attributes:
        prompt: what to show. negative: what to steer away from; only the baseline uses it.
        width, height, frames: of the video, in pixels and frames.
        steps: network calls (few-step) or solver steps (baseline).
        seed: of the CPU noise generator.
        sigma_max, ode, boundary: few-step sampler. guidance, guidance_low, shift, solver: baseline.
        baseline: run the unaccelerated sampler. Undistilled models always do.
    """

    prompt: str
    negative: str | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    steps: int | None = None
    seed: int = 0
    sigma_max: float | None = None
    ode: bool = False
    boundary: float | None = None
    baseline: bool = False
    guidance: float | None = None
    guidance_low: float | None = None
    shift: float | None = None
    solver: str | None = None

    @property
    def guided(self) -> bool:
        """Whether a second network call, with the negative prompt, is made at every step."""
        return self.baseline and (self.guidance != 1.0 or self.guidance_low not in (None, 1.0))

    def settings(self) -> dict[str, Any]:
        """The values that reproduce this request, for the file and for ``--like``."""
        hidden = FEW_STEP_ONLY if self.baseline else BASELINE_ONLY
        return {k: v for k, v in vars(self).items() if v is not None and k not in hidden}


FEW_STEP_ONLY = ("sigma_max", "ode")
BASELINE_ONLY = ("negative", "guidance", "guidance_low", "shift", "solver")
SETTINGS = tuple(field.name for field in fields(Request))


def nearest_frames(card: ModelCard, frames: int) -> tuple[int, int]:
    """The legal frame counts next to ``frames``, below and above."""
    stride = card.vae.temporal_stride
    below = max(0, (frames - 1) // stride) * stride + 1
    return below, below + stride


def resolve(request: Request, card: ModelCard, fit: Fit = "refuse") -> Request:
    """Fill the defaults of ``card`` in and check every value.

    Settings that the sampler in question does not have are dropped with a warning.

    Raises:
        UsageError: the value, the allowed set, and the nearest legal choice.
    """
    check_types(request)
    baseline = request.baseline or not card.few_step
    full = _without_unused(replace(request, baseline=baseline), card)
    defaults: dict[str, Any] = {
        "width": card.width,
        "height": card.height,
        "frames": card.frames,
        "steps": card.baseline.steps if baseline else 4,
    }
    if len(card.experts) > 1:
        defaults["boundary"] = card.boundary
    if baseline:
        defaults |= {
            "negative": "" if card.embedded else NEGATIVE,
            "guidance": card.baseline.guidance,
            "shift": card.baseline.shift,
            "solver": card.baseline.solver,
        }
    else:
        defaults["sigma_max"] = card.sigma_max
    missing = {k: v for k, v in defaults.items() if getattr(full, k) is None}
    full = replace(full, **missing)
    check_values(full, card)
    return _fit_size(_fit_frames(full, card, fit), card, fit)


def _without_unused(request: Request, card: ModelCard) -> Request:
    """Drop what has no effect, saying so."""
    if request.guidance_low is not None and len(card.experts) < 2:
        raise UsageError(
            "guidance-single-expert",
            f"A second guidance scale was given, but {card.name} has one network.",
            "Leave it out.",
        )
    names: tuple[str, ...] = FEW_STEP_ONLY if request.baseline else BASELINE_ONLY
    if len(card.experts) < 2:
        names += ("boundary",)
    defaults: dict[str, Any] = {field.name: field.default for field in fields(Request)}
    given = {n: defaults[n] for n in names if getattr(request, n) not in (defaults[n], "")}
    # Guidance 1 is what distilled weights do anyway.
    said = [n for n in given if n != "guidance" or request.guidance != 1.0]
    if said:
        sampler = "baseline" if request.baseline else "few-step sampler"
        warnings.warn(
            f"{', '.join(said)}: without effect on {card.name} with the {sampler}.", stacklevel=4
        )
    return replace(request, **given)


def _fit_frames(request: Request, card: ModelCard, fit: Fit) -> Request:
    frames, stride = request.frames, card.vae.temporal_stride
    assert frames is not None
    below, above = nearest_frames(card, frames)
    if frames >= 1 and frames == below:
        near = frames
    elif fit == "refuse" or frames < 1:
        nearest = f"{below} or {above}" if frames >= 1 else "1"
        raise UsageError(
            "frames-illegal",
            f"{frames} frames cannot be made: {card.name} needs {stride}·n+1.",
            f"Use {nearest}.",
        )
    else:
        near = frames // stride * stride + 1 if fit == "diffusers" else below
        warnings.warn(f"{frames} frames were asked for; {stride}·n+1 is needed, making {near}.",
                      stacklevel=4)  # fmt: skip
    latent = card.vae.latent_frames(near) // card.dit.patch[0]
    if latent > ROPE_LIMIT:
        most = ((ROPE_LIMIT * card.dit.patch[0]) - 1) * stride + 1
        raise UsageError(
            "frames-too-many",
            f"{near} frames make {latent} latent frames; the networks know {ROPE_LIMIT}.",
            f"Use {most} frames or fewer.",
        )
    return replace(request, frames=near)


def _fit_size(request: Request, card: ModelCard, fit: Fit) -> Request:
    multiple = card.size_multiple
    values = {}
    for side in ("width", "height"):
        value = getattr(request, side)
        below = value // multiple * multiple
        if value > ROPE_LIMIT * multiple:
            raise UsageError(
                "size-too-large",
                f"A {side} of {value} pixels makes {-(-value // multiple)} tokens; the networks "
                f"know {ROPE_LIMIT} per side.",
                f"Use {ROPE_LIMIT * multiple} pixels or fewer.",
            )
        if value >= multiple and value == below:
            continue
        if fit == "refuse" or value < multiple:
            nearest = f"{below} or {below + multiple}" if value > multiple else str(multiple)
            raise UsageError(
                "size-illegal",
                f"A {side} of {value} pixels cannot be made: {card.name} needs a multiple of "
                f"{multiple}.",
                f"Use {nearest}.",
            )
        warnings.warn(f"{side} {value} is not a multiple of {multiple}; making {below}.",
                      stacklevel=4)  # fmt: skip
        values[side] = below
    return replace(request, **values)
