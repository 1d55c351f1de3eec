"""Runs the jobs of ``generate``: one load, one video after the other, written as it decodes."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from turbodiffusion.errors import TurboDiffusionError, out_of_memory
from turbodiffusion.models.cards import CARDS, Attention, ModelCard
from turbodiffusion.pipeline.checks import check_image
from turbodiffusion.pipeline.identity import differing_parts
from turbodiffusion.pipeline.jobs import Job, plan_jobs, request_of
from turbodiffusion.pipeline.outputs import plan_outputs
from turbodiffusion.pipeline.placement import apply, with_ladder
from turbodiffusion.pipeline.planning import (
    Planned,
    describes,
    learn,
    plan_files,
    require_fit,
    summary,
)
from turbodiffusion.pipeline.progress import Progress
from turbodiffusion.pipeline.report import RunReport
from turbodiffusion.pipeline.request import Fit, Request, resolve
from turbodiffusion.weights.find import Files, default_name, find

if TYPE_CHECKING:
    from turbodiffusion.pipeline.pipeline import Pipeline

T = TypeVar("T")
COMPANIONS = ("low", "vae", "text_encoder", "tokenizer")
ReadPrompt = Callable[[str, str], tuple[str, list[str]]]


@dataclass
class Result:
    """What became of a job: the file and its settings, or the error."""

    job: Job
    path: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    error: TurboDiffusionError | None = None
    embedded: bool = False
    report: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """One line of ``--json``."""
        if self.error is not None:
            return {"prompt": self.job.settings["prompt"], "error": self.error.as_json()}
        line = {"path": str(self.path), "seconds": self.seconds, "settings": self.settings}
        return line if self.report is None else {**line, "report": self.report}


def generate_all(flags: dict[str, Any], read_prompt: ReadPrompt | None = None) -> Iterator[Result]:
    """Make every video that a command line asks for. One that fails does not stop the others.

    Numbers, sizes, images and output names are checked before any weight is loaded, so that a
    mistake in the last line of a prompts file costs nothing.

    Args:
        flags: values of the command line by name; see :mod:`turbodiffusion.cli.generate`.
        read_prompt: for embedded models: a prompt and the card's task to (the text to encode,
            sentences to show).
    """
    like = _read_like(flags)
    jobs = plan_jobs(flags, like)
    flags = _like_model(flags, like)
    name = flags.get("model") or default_name(_task(jobs))
    files = find(name, **{k: flags[k] for k in COMPANIONS if k in flags})
    requests = check_jobs(jobs, files.card)
    names = plan_outputs(jobs, requests)
    progress = Progress(len(jobs))
    progress.note(_announce(files.card, requests[0]))
    samples = max(job.samples for job in jobs)
    files, planned = _plan(files, requests, flags, progress, samples)
    pipe = open_pipeline(files, flags, progress)
    if planned is not None:
        apply(pipe, planned.plan.settings)
    if like and (other := differing_parts(like.get("weights"), _identity(pipe, progress))):
        warnings.warn(f"The weights are not those of {flags['like']}: {', '.join(other)} differ, "
                      "so the video will.", stacklevel=2)  # fmt: skip
    for number, (job, request, name) in enumerate(zip(jobs, requests, names, strict=True)):
        progress.begin(number, request.prompt)
        try:
            result = run_job(pipe, job, request, name, progress, read_prompt,
                             monitor=bool(flags.get("monitor")))  # fmt: skip
        except Exception as error:
            known = error if isinstance(error, TurboDiffusionError) else out_of_memory(error)
            if known is None or known.exit_code == 130 or len(jobs) == 1:
                raise
            yield Result(job, error=known.with_traceback(None))  # its frames hold tensors
            continue
        if planned is not None and describes(planned, request, job.samples):
            learn(planned, pipe.any_expert.quantized, result.seconds)
        yield result


def _task(jobs: list[Job]) -> Literal["t2v", "i2v"]:
    """What a model must be able to do where none is named."""
    return "i2v" if any("image" in job.settings for job in jobs) else "t2v"


def _plan(
    files: Files, requests: list[Request], flags: dict[str, Any], progress: Progress, samples: int
) -> tuple[Files, Planned | None]:
    """Ask the planner before anything is loaded; it may refuse, or choose the 8-bit files.

    Raises:
        CapacityError: nothing fits.
    """
    if flags.get("no_plan"):
        return files, None
    name = str(flags.get("model") or "")
    chosen = name in CARDS  # a name leaves the layout open, a path or NAME-quant does not
    planned = plan_files(files, requests, flags, others=chosen, samples=samples)
    require_fit(planned)
    progress.note(f"plan: {summary(planned)}")
    for step in planned.plan.steps:
        progress.note(f"  {step}")
    if planned.plan.settings.quantised and chosen:
        companions = {k: flags[k] for k in COMPANIONS if k in flags}
        files = find(name, quantized=True, **companions)
    return files, planned


def check_jobs(jobs: list[Job], card: ModelCard, fit: Fit = "refuse") -> list[Request]:
    """The requests of all jobs, with every check that needs no weights; see :func:`.resolve`."""
    requests = []
    for job in jobs:
        image = job.settings.get("image")
        check_image(image, card)
        if image is not None:
            from turbodiffusion.media.image import load_image

            load_image(image)
        requests.append(resolve(request_of(job, card), card, fit))
    return requests


def open_pipeline(files: Files, flags: dict[str, Any], progress: Progress) -> Pipeline:
    """Load what :func:`~turbodiffusion.weights.find.find` found, and say what will run."""
    with progress.phase("loading"):
        from turbodiffusion.pipeline.load import load

        options = {k: flags[k] for k in ("device", "attention", "topk") if k in flags}
        pipe = load(files, **options)
    used = pipe.any_expert.attention
    sparse = "" if used.kind == "dense" else f" (top-k {used.mean_topk:.3g})"
    linears = "int8" if pipe.any_expert.quantized else str(pipe.dit_dtype).removeprefix("torch.")
    progress.note(f"on {pipe.device}, {used.kind} attention{sparse}, {linears} linears")
    return pipe


def run_job(
    pipe: Pipeline, job: Job, request: Request, name: str, progress: Progress,
    read_prompt: ReadPrompt | None = None, monitor: bool = False,
) -> Result:  # fmt: skip
    """One file, from prompt to disk. ``request`` is resolved; ``name`` is where it goes;
    ``monitor`` adds a report of the run to the file and the result."""
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(RunReport(pipe)) if monitor else None
        result = _run_job(pipe, job, request, name, progress, read_prompt, report)
    if report is not None and (sentence := report.sentence):
        progress.note(sentence)
    return result


def _run_job(
    pipe: Pipeline, job: Job, request: Request, name: str, progress: Progress,
    read_prompt: ReadPrompt | None, report: RunReport | None,
) -> Result:  # fmt: skip
    from turbodiffusion.media.write import open_writer, side_by_side

    assert request.width and request.height and request.frames and request.steps
    settings: dict[str, Any] = {}
    result = Result(job, settings=settings, embedded=pipe.card.embedded)
    clock = _Stopwatch(result.seconds)
    text = request.prompt
    if pipe.card.embedded and read_prompt is not None:
        text, notes = read_prompt(text, pipe.card.task)
        for note in notes:
            warnings.warn(note, stacklevel=2)

    def fitted(phase: str, run: Callable[[], T]) -> T:
        return with_ladder(pipe, phase, run, progress.note)

    def encode(prompt: str) -> Any:
        return fitted("text", lambda: pipe.encode_prompts([prompt]))

    with progress.phase("reading the prompt"):
        context = encode(text)
        negative = encode(request.negative or "") if request.guided else None
        clock.lap("text")
        image = job.settings.get("image")
        y = fitted("condition", lambda: pipe.image_condition(image, request))
        if y is not None:
            clock.lap("condition")
    latents = []
    with progress.steps("denoising", request.steps * job.samples) as on_step:
        for i in range(job.samples):
            one, before = replace(request, seed=request.seed + i), i * request.steps

            def denoise(one: Request = one, before: int = before) -> Any:
                return pipe.denoise([one], context, negative, y, lambda n, *_: on_step(before + n))

            latents.append(fitted("denoise", denoise))
    clock.lap("denoise")
    settings.update(pipe.settings_of(request), weights=_identity(pipe, progress))
    settings |= {"read_as": text} if text != request.prompt else {}
    settings |= {"image": str(job.settings["image"])} if "image" in job.settings else {}
    settings |= {"samples": job.samples} if job.samples > 1 else {}
    clock.lap("identify")
    size = request.width * job.samples, request.height

    def decode() -> Path:
        assert request.frames
        writer = open_writer(name, *size, pipe.card.fps, settings, frames=request.frames)
        with progress.steps("decoding", request.frames) as on_frames, writer:
            for frames_BFHWC in pipe.decode(_joined(latents)):
                writer.write(side_by_side(frames_BFHWC))
                on_frames(writer.frames)
        return writer.path

    if report is not None:
        settings["report"] = report.so_far(result.seconds)
    result.path = fitted("decode", decode)
    clock.lap("decode")
    if report is not None:
        result.report = report.so_far(result.seconds)
    progress.end(result.seconds)
    return result


def _joined(latents: list[Any]) -> Any:
    import torch

    return torch.cat(latents)


class _Stopwatch:
    """Seconds between laps, by name."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._seconds[name] = round(now - self._last, 3)
        self._last = now


def _identity(pipe: Pipeline, progress: Progress) -> dict[str, Any]:
    if pipe.identity is None:
        return {}
    with progress.phase("hashing the weights, once"):
        return pipe.identity.as_dict()


def _read_like(flags: dict[str, Any]) -> dict[str, Any]:
    if not flags.get("like"):
        return {}
    from turbodiffusion.media.settings import read_settings

    return read_settings(flags["like"])


def _like_model(flags: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """The model and attention of a stored video, unless the flags name a model."""
    if not isinstance(like.get("model"), str) or "model" in flags:
        return flags
    from turbodiffusion.models.cards import CARDS

    card = CARDS.get(like["model"])
    quantised = like.get("quantised") and card is not None and not card.embedded
    flags = {**flags, "model": like["model"] + ("-quant" if quantised else "")}
    stored = like.get("attention")
    if "attention" not in flags and isinstance(stored, dict):
        try:
            attention = Attention(**stored)
        except TypeError:  # written by another version
            return flags
        flags["attention"] = attention.with_topk(flags.pop("topk", None))
    return flags


def _announce(card: ModelCard, request: Request) -> str:
    how = f"{request.steps} step{'s' if request.steps != 1 else ''}"
    how += " with guidance" if request.guided else ""
    embedded = "embedded model " if card.embedded else ""
    assert request.frames is not None
    length = f"{request.frames / card.fps:.1f} s at {card.fps} fps"
    frames = "1 frame" if request.frames == 1 else f"{request.frames} frames ({length})"
    return f"{embedded}{card.name}: {request.width}×{request.height}, {frames}, {how}"
