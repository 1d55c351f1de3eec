"""What `turbodiffusion mini judge` measures: how often a video shows what its caption says.

Every row gets the same prompts and the same noise, batch by batch, and the results of each video
are kept, so that rows are compared pair by pair. While a batch is judged on the processor's cores,
the device makes the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.media.write import to_uint8
from turbodiffusion.mini import world
from turbodiffusion.mini.data import chunk_of, render_clips
from turbodiffusion.mini.metrics.diversity import SEEDS, Point, diversity
from turbodiffusion.mini.metrics.latents import LatentSet
from turbodiffusion.mini.networks import Networks, network_calls, requests_of, sample_latents
from turbodiffusion.mini.observe import Judges, Observation
from turbodiffusion.mini.prompts import REAL_SEED, Batch, world_batches
from turbodiffusion.mini.rows import BY_NAME, Row
from turbodiffusion.mini.tally import RowTally, Tally
from turbodiffusion.pipeline.pipeline import Pipeline
from turbodiffusion.sampling.loop import Velocity

Progress = Callable[[str], None]


@dataclass
class Made:
    """What a row made of one batch, on the device: latents, and uint8 clips (B, F, H, W, 3)."""

    latents: Tensor
    clips: Tensor


@dataclass
class Evaluation:
    """Runs rows over batches and gathers what is measured.

    Attributes:
        steps, guidance: of the rows with the card's own sampler, the teacher at full length.
    """

    networks: Networks
    rows: Sequence[Row]
    judges: Judges
    steps: int | None = None
    guidance: float | None = None
    progress: Progress = lambda text: None
    tallies: dict[str, RowTally] = field(default_factory=dict)
    starts: dict[str, list[tuple[str, list[Point]]]] = field(default_factory=dict)
    examples: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """Prompt → row → clip (F, H, W, 3): the first held-out or given one of each kind."""

    def __post_init__(self) -> None:
        for row in self.rows:
            has = row.reference if row.reference in {one.name for one in self.rows} else ""
            self.tallies[row.name] = RowTally(row.shown, BY_NAME[has].shown if has else "")

    def run(self, batches: Sequence[Batch], deadline: float | None = None) -> int:
        """Every row on every batch; returns how many batches were done before ``deadline``, in
        seconds of ``time.monotonic()``."""
        for number, batch in enumerate(batches):
            if deadline is not None and number and time.monotonic() > deadline:
                self.progress(f"stopped after {number} of {len(batches)} batches")
                break
            start = time.monotonic()
            self._batch(batch, first=number == 0)
            self.progress(
                f"batch {number + 1}/{len(batches)}, {len(batch)} prompts, every row: "
                f"{time.monotonic() - start:.1f} s"
            )
        else:
            number = len(batches)
        self.judges.finish()
        for name, starts in self.starts.items():
            self.tallies[name].diversity = diversity(starts)
        return number

    def _batch(self, batch: Batch, first: bool) -> None:
        """Make and hand over one batch with every row; its clips are kept while others refer to
        them."""
        networks, done = self.networks, dict[str, Made]()
        sampled = [row for row in self.rows if row.part]
        context = negative = None
        if sampled:
            pipe = networks.pipeline(sampled[0])
            context, negative = pipe.encode_prompts(batch.prompts), pipe.encode_prompts([""])
        for row in self.rows:
            if self._leaves_out(row, batch):
                continue
            tally = self.tallies[row.name]
            if row.part:
                assert context is not None
                made = self._sample(row, tally, batch, context, negative)
            else:
                made = self._render(row, tally, batch, done)
            done[row.name] = made
            self._hand_over(row, tally, batch, made, done.get(row.reference))
            if first and row.part and row.few_step and row.reference in done:
                tally.step_cosines += self._step_cosines(row, batch, context)

    @staticmethod
    def _leaves_out(row: Row, batch: Batch) -> bool:
        """Rendered rows need scenes; diversity is asked of samplers, not of a slow row's
        attention."""
        if not row.part:
            return batch.scenes is None
        return batch.repeats and not row.few_step and row.attention != "dense"

    def _sample(
        self, row: Row, tally: RowTally, batch: Batch, context: Tensor, negative: Tensor | None
    ) -> Made:
        pipe = self.networks.pipeline(row)
        requests = requests_of(pipe, row, batch.prompts, batch.seeds, self.steps, self.guidance)
        tally.calls = network_calls(requests[0])
        start = self._clock()
        latents = sample_latents(pipe, requests, context, negative)
        middle = self._clock()
        clips = to_uint8(self.networks.decode(latents))
        end = self._clock()
        tally.denoising.append((middle - start) / len(batch))
        tally.decoding.append((end - middle) / len(batch))
        if not batch.repeats:
            tally.group(batch.split, batch.objects).seconds.append((end - start) / len(batch))
        return Made(latents, clips)

    def _render(self, row: Row, tally: RowTally, batch: Batch, done: dict[str, Made]) -> Made:
        """The rows without a sampler: rendered clips, and those through the autoencoder."""
        assert batch.scenes is not None
        networks, card = self.networks, self.networks.card
        video = render_clips(batch.scenes, card.frames, card.height, networks.device)
        if row.name == "truth":
            return Made(networks.encode(video), to_uint8(video))
        start = self._clock()
        latents = networks.encode(video)
        middle = self._clock()
        out = networks.decode(latents)
        end = self._clock()
        tally.decoding.append((end - middle) / len(batch))
        group = tally.group(batch.split, batch.objects)
        group.seconds.append((end - start) / len(batch))
        group.square += ((out - video).square().mean((1, 2, 3, 4)) / 4).tolist()
        return Made(latents, to_uint8(out))

    def _hand_over(
        self, row: Row, tally: RowTally, batch: Batch, made: Made, reference: Made | None
    ) -> None:
        if batch.repeats:
            prompts = self.starts.setdefault(row.name, [])
            self.judges.submit(made.clips, batch.expected, _Starts(prompts, batch))
            return
        group = tally.group(batch.split, batch.objects)
        group.calls = tally.calls
        if row.name != "vae":  # its latents are those of the truth
            tally.latents.add(made.latents)
        if reference is not None and row.part:
            error = (made.clips.float() - reference.clips.float()).div_(255).square_()
            group.square += error.mean((1, 2, 3, 4)).tolist()
            tally.cosines += _cosine(made.latents, reference.latents).tolist()
        self.judges.submit(made.clips, batch.expected, group.add)
        if group.first and (batch.split == "held_out" or batch.scenes is None):
            shown = self.examples.setdefault(batch.prompts[0], {})
            shown[row.name] = made.clips[0].cpu().numpy()
        group.first = False

    def _step_cosines(self, row: Row, batch: Batch, context: Tensor | None) -> list[list[float]]:
        """Video → cosine, at each step, of this network's answer and its reference's, both given
        what the reference sees on its own way."""
        assert context is not None
        pipe, other = self.networks.pipeline(row), self.networks.pipeline(BY_NAME[row.reference])
        text, steps = pipe.any_expert.text_kv(context), list[Tensor]()

        def watch(velocity: Velocity) -> Velocity:
            def both(x: Tensor, t: Tensor, expert: str) -> Tensor:
                wanted = velocity(x, t, expert)
                got = pipe.any_expert(x, t, None, None, text_kv=text)
                steps.append(_cosine(got, wanted))
                return wanted

            return both

        requests = requests_of(other, BY_NAME[row.reference], batch.prompts, batch.seeds)
        sample_latents(other, requests, context, None, watch)
        return torch.stack(steps, dim=1).tolist()

    def _clock(self) -> float:
        if self.networks.device.type == "cuda":
            torch.cuda.synchronize(self.networks.device)
        return time.perf_counter()


class _Starts:
    """Takes the observations of one batch of repeated prompts: where each object starts."""

    def __init__(self, prompts: list[tuple[str, list[Point]]], batch: Batch) -> None:
        motions = [str(want.objects[0].motion) for want in batch.expected[::SEEDS]]
        self.points: list[list[Point]] = [[] for _ in motions]
        self.seen = 0
        prompts.extend(zip(motions, self.points, strict=True))

    def __call__(self, observation: Observation) -> None:
        if observation.things:
            self.points[self.seen // SEEDS].append(observation.things[0].start)
        self.seen += 1


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """(B,) cosines of two batches."""
    return torch.cosine_similarity(first.flatten(1).double(), second.flatten(1).double(), dim=1)


def real_clips(networks: Networks, n: int, batches: Sequence[Batch]) -> LatentSet | None:
    """Latents of ``n`` rendered clips of the kinds in ``batches``, other ones than theirs."""
    kinds = sorted({(batch.split, batch.objects) for batch in batches if batch.scenes is not None})
    found, card = LatentSet(), networks.card
    each = n // len(kinds) if kinds else 0
    for number, (split, objects) in enumerate(kinds):
        scenes = world.sample_scenes(
            each, REAL_SEED + number, split="held_out" if split == "held_out" else "seen",
            two_objects=float(objects == 2),
        )  # fmt: skip
        step = 4 * chunk_of(card.frames, card.height)
        for first in range(0, each, step):
            part = scenes[first : first + step]
            clips = render_clips(part, card.frames, card.height, networks.device)
            found.add(networks.encode(clips))
    return found if len(found) > 1 else None


def sample(pipe: Pipeline, prompts: list[str], seed: int, **settings: Any) -> tuple[Tensor, int]:
    """Videos of the prompts by a pipeline's own sampler, uint8 (B, F, H, W, 3), and the network
    calls that each one took.

    Prompt ``i`` starts from the noise of ``seed + i``; ``settings`` are steps and guidance.
    """
    seeds = [seed + i for i in range(len(prompts))]
    requests = requests_of(pipe, None, prompts, seeds, **settings)
    negative = pipe.encode_prompts([""]) if requests[0].guided else None
    latents = sample_latents(pipe, requests, pipe.encode_prompts(prompts), negative)
    return torch.cat(list(pipe.decode(latents)), 1), network_calls(requests[0])


def measure(
    pipe: Pipeline, split: world.Split, objects: int, n: int, batch: int, **settings: Any
) -> Tally:
    """One pipeline's own sampler, judged in this process on ``n`` of the world's prompts."""
    tally, judges = Tally(pipe.card.name, split, objects), Judges(1)
    for part in world_batches([objects], n, batch, [split]):
        clips, tally.calls = sample(pipe, part.prompts, part.seeds[0], **settings)
        judges.submit(clips, part.expected, tally.add)
    return tally


def require_prompts_of_the_world(rows: Sequence[Row]) -> None:
    """Refuse rows that render what the world would show, for prompts from a file."""
    wrong = [row.name for row in rows if not row.part]
    if wrong:
        raise UsageError(
            "mini-row",
            f"The rows {', '.join(wrong)} show rendered clips, which prompts of a file lack.",
            "Leave these rows out, or leave --prompts out.",
        )
