"""Judging many clips at once: what is kept of each, and the processes that do it.

The judge takes some 20 ms of one processor core for a clip, a GPU makes one in less. Worker
processes judge while the device goes on; they see numpy arrays only and never touch a GPU.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from turbodiffusion.mini.attributes import Expected
from turbodiffusion.mini.judge import inspect_clip, score, some_frames
from turbodiffusion.mini.metrics.fidelity import Thing, flicker, things

CLIPS_PER_TASK = 8
WORTH_PROCESSES = 96
"""Clips below which the start of worker processes, a few seconds, is not earned back."""


@dataclass(frozen=True)
class Observation:
    """What is kept of a judged clip: right and wrong, its objects, flicker of its background."""

    scores: dict[str, bool | None]
    things: tuple[Thing, ...]
    flicker: float


def observe(video: Tensor | np.ndarray, expected: Expected) -> Observation:
    """Judge one clip (F, H, W, 3) against what its caption asks for."""
    seen = inspect_clip(video)
    return Observation(score(seen.reading, expected), things(seen), flicker(seen))


Sink = Callable[[Observation], None]
"""Takes the observations of one row, clip by clip."""


def _observe_all(clips: np.ndarray, expected: Sequence[Expected]) -> list[Observation]:
    return [observe(clip, want) for clip, want in zip(clips, expected, strict=True)]


def _start_worker() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)


def usable_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class _Task:
    """Clips on their way through a worker, kept until it has answered."""

    future: Future[list[Observation]]
    work: tuple[np.ndarray, Sequence[Expected]]
    sink: Sink


class Judges:
    """Judges batches of clips in the background and hands the results back in order.

    Args:
        workers: processes; 1 judges at once in this one.
    """

    def __init__(self, workers: int) -> None:
        self._pool = None
        if workers > 1:
            # Not fork: a process that has used a GPU or threads cannot be copied safely.
            self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
        self._most = 6 * workers
        self.waited = 0.0
        """Seconds that making videos stood still for judging."""
        self._waiting: deque[_Task] = deque()

    def __enter__(self) -> Judges:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._pool:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def submit(self, videos: Tensor, expected: Sequence[Expected], sink: Sink) -> None:
        """Judge uint8 clips (B, F, H, W, 3); ``sink`` gets each observation, in order.

        Waits where so much is under way that memory would fill.
        """
        clips = some_frames(videos).cpu().numpy()
        for first in range(0, len(clips), CLIPS_PER_TASK):
            part = slice(first, first + CLIPS_PER_TASK)
            work = clips[part].copy(), expected[part]
            try:
                future = self._pool.submit(_observe_all, *work) if self._pool else None
            except BrokenProcessPool:
                self._go_on_alone()
                future = None
            if future is None:
                for observation in _observe_all(*work):
                    sink(observation)
                continue
            self._waiting.append(_Task(future, work, sink))
            while len(self._waiting) > self._most:
                self._next()

    def finish(self) -> None:
        """Wait for all that was submitted."""
        while self._waiting:
            self._next()

    def _next(self) -> None:
        task = self._waiting.popleft()
        start = time.monotonic()
        try:
            found = task.future.result()
        except BrokenProcessPool:
            found = _observe_all(*task.work)
        self.waited += time.monotonic() - start
        for observation in found:
            task.sink(observation)
        if self._pool and task.future.exception():
            self._go_on_alone()

    def _go_on_alone(self) -> None:
        """A worker died, of too little memory perhaps: what was made must not be lost with it."""
        warnings.warn("A judging process died; this process judges alone.", stacklevel=3)
        self._pool = None
        self.finish()
