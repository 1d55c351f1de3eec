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
from turbodiffusion.media.settings import read_settings
from turbodiffusion.media.sizes import adaptive_size, parse_size, resolution
from turbodiffusion.models.cards import ModelCard
from turbodiffusion.pipeline.request import Request

OUTPUT_FOLDER = Path("output")
REQUEST_FLAGS = (
    "seed", "steps", "frames", "baseline", "guidance", "negative", "solver", "shift", "sigma_max",
    "ode", "boundary",
)  # fmt: skip
JOB_KEYS = {*REQUEST_FLAGS, "prompt", "image", "output", "resolution", "aspect", "num"}
LIKE_KEYS = {*REQUEST_FLAGS, "prompt", "image", "width", "height", "guidance_low"}


@dataclass(frozen=True)
class Job:
    """One video to make: settings by name, and where it goes (None: a name from the prompt)."""

    settings: dict[str, Any]
    output: str | None
    number: int


def plan_jobs(flags: dict[str, Any]) -> list[Job]:
    """The jobs of one command line.

    Args:
        flags: values given by the user, by the flag's name with underscores.

    Raises:
        UsageError: no prompt, a prompts file that cannot be used, a wrong number.
    """
    base: dict[str, Any] = {}
    if like := flags.get("like"):
        base = {k: v for k, v in read_settings(like).items() if k in LIKE_KEYS}
    if "resolution" in flags or "aspect" in flags:
        base.pop("width", None), base.pop("height", None)
    base |= {k: v for k, v in flags.items() if k in JOB_KEYS}
    lines = _lines(flags["prompts"]) if flags.get("prompts") else [{}]
    if flags.get("prompts") and flags.get("prompt"):
        raise UsageError("prompt-twice", "Both a prompt and --prompts were given.",
                         "Give one of the two.")  # fmt: skip
    merged = [{**base, **line} for line in lines]
    jobs: list[Job] = []
    for settings in merged:
        if not str(settings.get("prompt") or "").strip():
            raise UsageError(
                "prompt-empty",
                "There is no prompt.",
                'Describe what to show: turbodiffusion generate "a red circle".',
            )
        count = settings.pop("num", 1)
        if not isinstance(count, int) or count < 1:
            raise UsageError("num-illegal", f"--num {count} is not a number of videos.",
                             "Use 1 or more.")  # fmt: skip
        output = settings.pop("output", None)
        several = count > 1 or len(merged) > 1
        for i in range(count):
            own = {**settings, "seed": settings.get("seed", 0) + i}
            jobs.append(Job(own, _numbered(output, len(jobs)) if several else output, len(jobs)))
    return jobs


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


def output_path(job: Job, seed: int) -> str:
    """Where the job's video goes; without a name one is made from prompt and seed."""
    if job.output is not None:
        return job.output
    words = re.sub(r"[^\w]+", "-", str(job.settings["prompt"]).lower()).strip("-")
    return str(OUTPUT_FOLDER / f"{words[:60].rstrip('-') or 'video'}-{seed}.mp4")


def request_of(job: Job, card: ModelCard) -> Request:
    """The job as a request for this card; the size comes from name, aspect or image."""
    s = job.settings
    values = {k: s[k] for k in (*REQUEST_FLAGS, "width", "height", "guidance_low") if k in s}
    try:
        request = Request(prompt=s["prompt"], **values)
    except TypeError as error:
        raise UsageError("job-setting", f"A setting cannot be used: {error}.",
                         "See `turbodiffusion generate --help`.") from error  # fmt: skip
    size = _size(s, card)
    return request if size is None else replace(request, width=size[0], height=size[1])


def _size(settings: dict[str, Any], card: ModelCard) -> tuple[int, int] | None:
    """(width, height), or None for the card's own size."""
    name, aspect = settings.get("resolution"), settings.get("aspect")
    if "width" in settings or (name is None and aspect is None):
        return None
    if name and re.search(r"[x×*]", name):
        return parse_size(name)
    if card.embedded and name:
        raise UsageError(
            "resolution-embedded",
            f"The embedded model {card.name} has no {name}: it was trained at "
            f"{card.width}x{card.height}.",
            f"Leave --resolution out, or give a multiple of {card.size_multiple} such as "
            f"{card.width}x{card.height}.",
        )
    if card.embedded:
        wide, high = (int(n) for n in (aspect or "1:1").split(":"))
        return adaptive_size(high, wide, card.width * card.height, card.size_multiple)
    name = name or ("720p" if card.height >= 720 else "480p")
    if aspect == "image":
        if "image" not in settings:
            raise UsageError("aspect-image", "--aspect image needs --image.", "Give an image.")
        from turbodiffusion.media.image import load_image

        width, height = resolution(name, "16:9")
        _, image_h, image_w = load_image(settings["image"]).shape
        return adaptive_size(image_h, image_w, width * height, card.size_multiple)
    return resolution(name, aspect or "16:9")
