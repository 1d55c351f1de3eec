"""What ``generate`` is asked to do, as a list of jobs, before anything heavy is loaded.

A job's settings come from three places, later ones winning: a file given with ``--like``, the
flags, and the job's own line in a prompts file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from turbodiffusion.errors import UsageError
from turbodiffusion.media.sizes import ASPECTS, RESOLUTIONS, adaptive_size, parse_size, resolution
from turbodiffusion.models.cards import ModelCard
from turbodiffusion.pipeline.request import Request

REQUEST_FLAGS = (
    "seed", "steps", "frames", "baseline", "guidance", "negative", "solver", "shift", "sigma_max",
    "ode", "boundary",
)  # fmt: skip
JOB_KEYS = {*REQUEST_FLAGS, "prompt", "image", "output", "resolution", "aspect", "num"}
LIKE_KEYS = {*REQUEST_FLAGS, "prompt", "image", "width", "height", "guidance_low", "samples"}


@dataclass(frozen=True)
class Job:
    """One file to make.

    Attributes:
        settings: by name, see ``JOB_KEYS``.
        output: where it goes; None: a name made from the prompt.
        samples: videos side by side in the file, with seeds counting up.
    """

    settings: dict[str, Any]
    output: str | None = None
    samples: int = 1


def plan_jobs(flags: dict[str, Any], like: dict[str, Any] | None = None) -> list[Job]:
    """The jobs of one command line.

    Args:
        flags: values given by the user, by the flag's name with underscores.
        like: settings stored in a video, which the flags override.

    Raises:
        UsageError: no prompt, a prompts file that cannot be used, a wrong number.
    """
    base = {k: v for k, v in (like or {}).items() if k in LIKE_KEYS}
    base = _over(base, {k: v for k, v in flags.items() if k in JOB_KEYS})
    lines = _lines(flags["prompts"]) if flags.get("prompts") else [{}]
    if flags.get("prompts") and flags.get("prompt"):
        raise UsageError("prompt-twice", "Both a prompt and --prompts were given.",
                         "Give one of the two.")  # fmt: skip
    jobs: list[Job] = []
    for line in lines:
        settings = _over(base, line)
        _require_prompt(settings)
        count, samples = (_count(settings.pop(name, 1), name) for name in ("num", "samples"))
        output = settings.pop("output", None)
        shared = len(lines) > 1 and "output" not in line
        for i in range(count):
            own = {**settings, "seed": settings.get("seed", 0) + i} if i else settings
            number = len(jobs) if shared else i
            several = shared or count > 1
            jobs.append(Job(own, _numbered(output, number) if several else output, samples))
    return jobs


def _require_prompt(settings: dict[str, Any]) -> None:
    if not str(settings.get("prompt") or "").strip():
        raise UsageError(
            "prompt-empty",
            "There is no prompt.",
            'Describe what to show: turbodiffusion generate "a red circle".',
        )


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError("num-illegal", f"{name} {value!r} is not a number of videos.",
                         "Use 1 or more.")  # fmt: skip
    return value


def _over(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """``more`` over ``base``; a size by name replaces one in pixels."""
    if "resolution" in more or "aspect" in more:
        base = {k: v for k, v in base.items() if k not in ("width", "height")}
    return {**base, **more}


def _lines(path: Path) -> list[dict[str, Any]]:
    """A prompts file: JSON lines, or one prompt a line. Blank lines and ``#`` lines are skipped."""
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("prompts-unreadable", f"The prompts file {path} cannot be read: {error}.",
                         "Give a UTF-8 text file.") from error  # fmt: skip
    out: list[dict[str, Any]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if not line.startswith("{"):
            out.append({"prompt": line})
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UsageError("prompts-json", f"Line {number} of {path} is not JSON: {error}.",
                             "Write one JSON object a line.") from error  # fmt: skip
        if unknown := set(value) - JOB_KEYS:
            raise UsageError(
                "prompts-key",
                f"Line {number} of {path} has the unknown setting {sorted(unknown)[0]!r}.",
                f"Settings are {', '.join(sorted(JOB_KEYS))}.",
            )
        for name in ("image", "output", "resolution", "aspect"):
            if not isinstance(value.get(name, ""), str):
                raise UsageError("prompts-type",
                                 f"Line {number} of {path}: {name} is {value[name]!r}, not text.",
                                 "Give text in quotes.")  # fmt: skip
        out.append(value)
    if not out:
        raise UsageError("prompts-empty", f"{path} holds no prompt.", "Write one a line.")
    return out


def _numbered(output: str | None, number: int) -> str | None:
    """``clip.mp4`` → ``clip-000.mp4``; a folder gets numbered files."""
    if output is None:
        return None
    if output.endswith(("/", "\\")):
        return f"{output}{number:03d}.mp4"
    path = Path(output)
    return str(path.with_name(f"{path.stem}-{number:03d}{path.suffix}"))


def request_of(job: Job, card: ModelCard) -> Request:
    """The job as a request for this card; the size comes from name, aspect or image."""
    s = job.settings
    values = {k: s[k] for k in (*REQUEST_FLAGS, "width", "height", "guidance_low") if k in s}
    request = Request(prompt=s["prompt"], **values)
    size = _size(s, card)
    return request if size is None else replace(request, width=size[0], height=size[1])


def _size(settings: dict[str, Any], card: ModelCard) -> tuple[int, int] | None:
    """(width, height), or None for the card's own size."""
    name, aspect = settings.get("resolution"), settings.get("aspect")
    if "width" in settings or (name is None and aspect is None):
        return None
    if name and re.search(r"[xX×*]", name):
        if aspect:
            raise UsageError("aspect-twice", f"The size {name} has a shape, and --aspect {aspect} "
                             "asks for another.", "Give one of the two.")  # fmt: skip
        return parse_size(name)
    if card.embedded and name:
        raise UsageError(
            "resolution-embedded",
            f"The embedded model {card.name} has no {name}: it was trained at "
            f"{card.width}x{card.height}.",
            f"Leave --resolution out, or give a multiple of {card.size_multiple} such as "
            f"{card.width}x{card.height}.",
        )
    if name is None:
        own = (card.width, card.height)
        name = next((n for n, sizes in RESOLUTIONS.items() if sizes["16:9"] == own), None)
    area_w, area_h = resolution(name, "16:9") if name else (card.width, card.height)
    if aspect == "image":
        shape = _image_shape(settings)
    elif name:
        return resolution(name, aspect or "16:9")
    elif aspect in ASPECTS:
        wide, high = (int(n) for n in aspect.split(":"))
        shape = (high, wide)
    else:
        raise UsageError("media-aspect", f"There is no aspect ratio {aspect!r}.",
                         f"Use one of {', '.join(ASPECTS)}.")  # fmt: skip
    return adaptive_size(*shape, area_w * area_h, card.size_multiple)


def _image_shape(settings: dict[str, Any]) -> tuple[int, int]:
    if "image" not in settings:
        raise UsageError("aspect-image", "--aspect image needs --image.", "Give an image.")
    from turbodiffusion.media.image import load_image

    _, height, width = load_image(settings["image"]).shape
    return height, width
