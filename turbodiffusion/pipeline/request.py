"""What is asked of a pipeline, checked against the card before any work is done."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import ModelCard

ROPE_LIMIT = 128
"""Positions per axis that the rotary table of the released networks knows."""


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
    negative: str = ""
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

    def settings(self) -> dict[str, Any]:
        """The values that reproduce this request, for the file and for ``--like``."""
        few_step_only = ("sigma_max", "ode")
        baseline_only = ("negative", "guidance", "guidance_low", "shift", "solver")
        hidden = few_step_only if self.baseline else baseline_only
        values = {k: v for k, v in vars(self).items() if v is not None and k not in hidden}
        return values


def nearest_frames(card: ModelCard, frames: int) -> tuple[int, int]:
    """The legal frame counts next to ``frames``, below and above."""
    stride = card.vae.temporal_stride
    below = max(0, (frames - 1) // stride) * stride + 1
    return below, below + stride


def resolve(request: Request, card: ModelCard, *, strict: bool = True) -> Request:
    """Fill the defaults of ``card`` in and check every value.

    Args:
        strict: refuse a frame count or size that does not fit, naming the nearest legal one;
            otherwise warn and round, as users of the released scripts and of diffusers expect.

    Raises:
        UsageError: the value, the allowed set, and the nearest legal choice.
    """
    baseline = request.baseline or not card.few_step
    steps = request.steps or (card.baseline.steps if baseline else 4)
    full = replace(
        request,
        width=request.width or card.width,
        height=request.height or card.height,
        frames=card.frames if request.frames is None else request.frames,
        steps=steps,
        boundary=card.boundary if request.boundary is None else request.boundary,
        baseline=baseline,
    )
    if baseline:
        full = replace(
            full,
            guidance=card.baseline.guidance if full.guidance is None else full.guidance,
            shift=card.baseline.shift if full.shift is None else full.shift,
            solver=full.solver or card.baseline.solver,
        )
    else:
        full = replace(full, sigma_max=full.sigma_max or card.sigma_max)
    full = _fit_frames(full, card, strict)
    full = _fit_size(full, card, strict)
    _check_sampler(full, card)
    return full


def _fit_frames(request: Request, card: ModelCard, strict: bool) -> Request:
    frames, stride = request.frames, card.vae.temporal_stride
    assert frames is not None
    if frames >= 1 and (frames - 1) % stride == 0:
        return request
    below, above = nearest_frames(card, frames)
    nearest = f"{below} or {above}" if frames >= 1 else "1"
    if strict or frames < 1:
        raise UsageError(
            "frames-illegal",
            f"{frames} frames cannot be made: {card.name} needs {stride}·n+1.",
            f"Use {nearest}.",
        )
    warnings.warn(f"{frames} frames were asked for; {stride}·n+1 is needed, making {below}.",
                  stacklevel=3)  # fmt: skip
    return replace(request, frames=below)


def _fit_size(request: Request, card: ModelCard, strict: bool) -> Request:
    multiple = card.size_multiple
    values = {}
    for side in ("width", "height"):
        value = getattr(request, side)
        tokens = -(-value // multiple)
        below, above = value // multiple * multiple, tokens * multiple
        if value >= multiple and tokens > ROPE_LIMIT:
            raise UsageError(
                "size-too-large",
                f"A {side} of {value} pixels makes {tokens} tokens; the networks know "
                f"{ROPE_LIMIT} per side.",
                f"Use {ROPE_LIMIT * multiple} pixels or fewer.",
            )
        if value >= multiple and value % multiple == 0:
            continue
        if strict or value < multiple:
            nearest = f"{below} or {above}" if value > multiple else str(multiple)
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


def _check_sampler(request: Request, card: ModelCard) -> None:
    assert request.steps is not None
    if request.baseline:
        if request.steps < 1:
            raise UsageError("steps-illegal", f"{request.steps} steps cannot be made.",
                             "Use 1 or more.")  # fmt: skip
    elif not 1 <= request.steps <= 4:
        raise UsageError(
            "steps-illegal",
            f"The few-step sampler has 1 to 4 steps, not {request.steps}.",
            "Use --steps 4, or --baseline for the slow sampler with any number of steps.",
        )
    if request.sigma_max is not None and request.sigma_max <= 0:
        raise UsageError("sigma-illegal", f"sigma_max {request.sigma_max} is not positive.",
                         f"The default of {card.name} is {card.sigma_max:g}.")  # fmt: skip
    if request.guidance_low is not None and len(card.experts) < 2:
        raise UsageError(
            "guidance-single-expert",
            f"A second guidance scale was given, but {card.name} has one network.",
            "Leave it out.",
        )
    if not request.prompt.strip():
        raise UsageError("prompt-empty", "The prompt is empty.", "Describe what to show.")
