"""Runs the jobs of ``generate``: one load, one video after the other, written as it decodes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbodiffusion.errors import TurboDiffusionError
from turbodiffusion.pipeline.jobs import Job, output_path, request_of
from turbodiffusion.pipeline.progress import Progress
from turbodiffusion.pipeline.request import Request, resolve

if TYPE_CHECKING:
    from turbodiffusion.pipeline.pipeline import Pipeline

LOAD_FLAGS = ("device", "attention", "topk", "low", "vae", "text_encoder", "tokenizer")
ReadPrompt = Callable[[str], tuple[str, list[str]]]


@dataclass
class Result:
    """What became of a job: the file and its settings, or the error."""

    job: Job
    path: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    error: TurboDiffusionError | None = None
    embedded: bool = False

    def as_json(self) -> dict[str, Any]:
        """One line of ``--json``."""
        if self.error is not None:
            error = {"code": self.error.code, "message": self.error.message, "fix": self.error.fix}
            return {"prompt": self.job.settings["prompt"], "error": error}
        return {"path": str(self.path), "seconds": self.seconds, "settings": self.settings}


def generate_all(
    jobs: list[Job], flags: dict[str, Any], read_prompt: ReadPrompt | None = None
) -> Iterator[Result]:
    """Make every job's video. A job that fails does not stop the others.

    Requests are checked against the card before any weight is loaded, so that a wrong number in
    the last line of a prompts file costs nothing.

    Args:
        jobs: from :func:`~turbodiffusion.pipeline.jobs.plan_jobs`.
        flags: values of the command line; those of ``LOAD_FLAGS`` and ``model`` are used.
        read_prompt: for embedded models: a prompt to (the text to encode, sentences to show).
    """
    from turbodiffusion.weights.find import find

    companions = {k: flags.get(k) for k in ("low", "vae", "text_encoder", "tokenizer")}
    card = find(flags.get("model"), **companions).card
    requests = [resolve(request_of(job, card), card) for job in jobs]
    progress = Progress(len(jobs))
    progress.note(_announce(card, requests[0]))
    with progress.phase("loading"):
        from turbodiffusion.pipeline.load import load

        pipe = load(flags.get("model"), **{k: flags[k] for k in LOAD_FLAGS if k in flags})
    for job, request in zip(jobs, requests, strict=True):
        try:
            yield run_job(pipe, job, request, progress, read_prompt)
        except TurboDiffusionError as error:
            if error.exit_code == 130 or len(jobs) == 1:
                raise
            yield Result(job, error=error)


def run_job(
    pipe: Pipeline,
    job: Job,
    request: Request,
    progress: Progress,
    read_prompt: ReadPrompt | None = None,
) -> Result:
    """One video, from prompt to file."""
    from turbodiffusion.media.write import open_writer

    assert request.width and request.height and request.frames
    result = Result(job, settings=pipe.settings_of(request), embedded=pipe.card.embedded)
    clock = time.perf_counter
    start = clock()
    progress.begin(job.number, request.prompt)
    text = request.prompt
    if pipe.card.embedded and read_prompt is not None:
        text, notes = read_prompt(text)
        for note in notes:
            warnings.warn(note, stacklevel=2)
    if text != request.prompt:
        result.settings["read_as"] = text
    with progress.phase("reading the prompt"):
        context = pipe.encode_prompts([text])
        negative = pipe.encode_prompts([request.negative]) if request.baseline else None
    if image := job.settings.get("image"):
        result.settings["image"] = str(image)
    y = pipe.image_condition(job.settings.get("image"), request)
    result.seconds["text"] = clock() - start
    start = clock()
    with progress.steps("denoising", request.steps or 0) as on_step:
        latent = pipe.denoise([request], context, negative, y, on_step)
    result.seconds["denoise"] = clock() - start
    start = clock()
    target = output_path(job, request.seed)
    writer = open_writer(target, request.width, request.height, pipe.card.fps, result.settings,
                         frames=request.frames)  # fmt: skip
    with progress.steps("decoding", request.frames) as on_frames, writer:
        for frames_BFHWC in pipe.decode(latent):
            writer.write(frames_BFHWC[0])
            on_frames(writer.frames, request.frames)
    result.seconds["decode"] = clock() - start
    result.seconds = {k: round(v, 3) for k, v in result.seconds.items()}
    result.path = writer.path
    progress.end(result.seconds)
    return result


def _announce(card: Any, request: Request) -> str:
    how = f"{request.steps} steps" + (" with guidance" if request.baseline else "")
    embedded = "embedded model " if card.embedded else ""
    length = request.frames / card.fps
    return (f"{embedded}{card.name}: {request.width}×{request.height}, {request.frames} frames "
            f"({length:.1f} s at {card.fps} fps), {how}")  # fmt: skip
