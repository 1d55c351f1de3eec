"""Where the videos of a run go, settled and tried before the work starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from turbodiffusion.errors import UsageError
from turbodiffusion.media.write import check_output
from turbodiffusion.pipeline.jobs import Job
from turbodiffusion.pipeline.request import Request

OUTPUT_FOLDER = Path("output")
_NAME_BYTES = 100  # file systems allow 255; the rest is for seed, number and ".partial"


def plan_outputs(jobs: Sequence[Job], requests: Sequence[Request]) -> list[str]:
    """One name for each job. Names that the user gave replace existing files; names made from
    prompts never do.

    Raises:
        UsageError: two jobs with one name, or a name that cannot be written.
        MediaError: a place that cannot be written.
    """
    names: list[str] = []
    taken: set[Path] = set()
    for job, request in zip(jobs, requests, strict=True):
        if job.output is not None:
            final = check_output(job.output, request.frames)
            if final in taken:
                raise UsageError("output-twice", f"Two videos would be written to {job.output}.",
                                 "Give each its own name, or a folder.")  # fmt: skip
            names.append(job.output)
        else:
            final = _free_name(request, taken)
            names.append(str(OUTPUT_FOLDER / final.name))
        taken.add(final)
    return names


def _free_name(request: Request, taken: set[Path]) -> Path:
    words = re.sub(r"[^\w]+", "-", request.prompt.lower()).strip("-")
    words = words.encode()[:_NAME_BYTES].decode(errors="ignore").rstrip("-") or "video"
    suffix = ".png" if request.frames == 1 else ".mp4"
    for number in range(1, 1_000_000):
        again = f"-{number}" if number > 1 else ""
        name = OUTPUT_FOLDER / f"{words}-seed{request.seed}{again}{suffix}"
        final = check_output(name, request.frames)
        if final not in taken and not final.exists():
            return final
    raise UsageError("output-names", f"{OUTPUT_FOLDER} is full of videos of this prompt.",
                     "Give a name with --output.")  # fmt: skip
