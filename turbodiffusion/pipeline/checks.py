"""Values of a request that no model can use, whatever its sizes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import ModelCard
from turbodiffusion.sampling.flow import SOLVERS
from turbodiffusion.sampling.noise import make_generators
from turbodiffusion.sampling.schedule import MAX_RCM_STEPS

if TYPE_CHECKING:
    from turbodiffusion.pipeline.request import Request

_WHOLE = ("width", "height", "frames", "steps", "seed")
_NUMBERS = ("sigma_max", "boundary", "guidance", "guidance_low", "shift")
_SWITCHES = ("ode", "baseline")
_TEXTS = ("prompt", "negative", "solver")


def check_types(request: Request) -> None:
    """Prompt files and settings stored in videos hold any JSON value under any name.

    Raises:
        UsageError: a value of the wrong kind, or a number that is not finite.
    """
    for names, kinds, words in (
        (_WHOLE, (int,), "a whole number"),
        (_NUMBERS, (int, float), "a number"),
        (_SWITCHES, (bool,), "true or false"),
        (_TEXTS, (str,), "text"),
    ):
        for name in names:
            value = getattr(request, name)
            if value is None and name not in ("prompt", "seed", "ode", "baseline"):
                continue
            wrong = isinstance(value, bool) and bool not in kinds
            if wrong or not isinstance(value, kinds) or not _finite(value):
                raise UsageError(
                    "setting-type", f"{name} is {value!r}, which is not {words}.", f"Give {words}."
                )
    if not request.prompt.strip():
        raise UsageError("prompt-empty", "The prompt is empty.", "Describe what to show.")


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def check_values(request: Request, card: ModelCard) -> None:
    """Ranges of the samplers, for a request without ``None`` where the sampler needs a value.

    Raises:
        UsageError: the value, the allowed set, and the nearest legal choice.
    """
    assert request.steps is not None
    make_generators(request.seed, 1)
    if request.baseline:
        if request.steps < 1:
            raise UsageError("steps-illegal", f"{request.steps} steps cannot be made.",
                             "Use 1 or more.")  # fmt: skip
    elif not 1 <= request.steps <= MAX_RCM_STEPS:
        raise UsageError(
            "steps-illegal",
            f"The few-step sampler has 1 to {MAX_RCM_STEPS} steps, not {request.steps}.",
            f"Use --steps {1 if request.steps < 1 else MAX_RCM_STEPS}, or --baseline for the slow "
            "sampler with any number of steps.",
        )
    if request.sigma_max is not None and request.sigma_max <= 0:
        raise UsageError("sigma-illegal", f"sigma_max {request.sigma_max} is not positive.",
                         f"The default of {card.name} is {card.sigma_max:g}.")  # fmt: skip
    if request.shift is not None and not 0 < request.shift <= 1000:
        raise UsageError("shift-illegal", f"shift {request.shift} is not between 0 and 1000.",
                         f"The default of {card.name} is {card.baseline.shift:g}.")  # fmt: skip
    if request.solver is not None and request.solver not in SOLVERS:
        raise UsageError("solver-unknown", f"There is no solver {request.solver!r}.",
                         f"Use {' or '.join(SOLVERS)}.")  # fmt: skip
    if request.boundary is not None and not 0 <= request.boundary <= 1:
        raise UsageError("boundary-illegal",
                         f"boundary {request.boundary} is not between 0 and 1.",
                         f"The default of {card.name} is {card.boundary:g}.")  # fmt: skip


def check_image(image: Any, card: ModelCard) -> None:
    """An image-to-video model needs an image, another one takes none.

    Raises:
        UsageError: it is the other way round.
    """
    if image is None and card.task == "i2v":
        raise UsageError("image-missing", f"{card.name} animates an image; none came.",
                         "Give one with --image FILE (image=… in Python).")  # fmt: skip
    if image is not None and card.task != "i2v":
        raise UsageError("image-unused", f"{card.name} takes no image.",
                         "Leave the image out, or use an image-to-video model such as "
                         "TurboWan2.2-I2V-A14B-720P.")  # fmt: skip
