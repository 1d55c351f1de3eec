"""What is counted while rows are judged, and its plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from turbodiffusion.mini.metrics.latents import LatentSet
from turbodiffusion.mini.metrics.shares import interval
from turbodiffusion.mini.observe import Observation

ATTRIBUTES = ("background", "colour", "shape", "motion", "joint")
THING_MEASURES = ("overlap", "sharpness", "jerk", "colour_drift", "shape_drift")


def psnr(square_errors: Iterable[float]) -> float | None:
    """dB of the mean of squared errors in [0, 1]; None without any, infinite without error."""
    values = list(square_errors)
    if not values:
        return None
    mean = sum(values) / len(values)
    return -10 * math.log10(mean) if mean > 0 else math.inf


def mean(values: Iterable[float]) -> float | None:
    """Mean of the values that are numbers; None without any."""
    usable = [value for value in values if not math.isnan(value)]
    return sum(usable) / len(usable) if usable else None


@dataclass
class Tally:
    """One row on the prompts of one kind: seen or held-out combinations, one or two objects.

    ``scores`` keeps every video in the order of the prompts, so that rows can be paired.
    """

    name: str
    split: str
    objects: int
    calls: int = 0
    scores: list[dict[str, bool | None]] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    square: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    first: bool = True
    """Nothing was handed over yet."""

    @property
    def videos(self) -> int:
        return len(self.scores)

    def add(self, observation: Observation) -> None:
        """Count one video."""
        self.scores.append(observation.scores)
        self.observations.append(observation)

    def marks(self, attribute: str) -> list[bool]:
        """Right or wrong of the videos whose caption asks for the attribute."""
        return [bool(s[attribute]) for s in self.scores if s.get(attribute) is not None]

    def as_json(self) -> dict[str, Any]:
        """Accuracy, 95 % interval and sample count of every attribute; PSNR; seconds."""
        values: dict[str, Any] = {
            "row": self.name, "split": self.split, "objects": self.objects, "videos": self.videos,
            "network_calls": self.calls,
        }  # fmt: skip
        if self.seconds:
            values["seconds_per_video"] = round(median(self.seconds), 5)
        for name in ATTRIBUTES:
            marks = self.marks(name)
            if marks:
                low, high = interval(sum(marks), len(marks))
                values[name] = {
                    "accuracy": round(sum(marks) / len(marks), 4),
                    "interval95": [round(low, 4), round(high, 4)],
                    "samples": len(marks),
                }
        quality = psnr(self.square)
        if quality is not None and self.name != "rendered truth":
            values["psnr_db"] = round(min(quality, 99.99), 2)
        return values


@dataclass
class RowTally:
    """All that is measured of one row, over all of its prompts."""

    name: str
    reference: str = ""
    calls: int = 0
    groups: dict[tuple[str, int], Tally] = field(default_factory=dict)
    latents: LatentSet = field(default_factory=LatentSet)
    cosines: list[float] = field(default_factory=list)
    step_cosines: list[list[float]] = field(default_factory=list)
    denoising: list[float] = field(default_factory=list)
    decoding: list[float] = field(default_factory=list)
    diversity: float | None = None

    def group(self, split: str, objects: int) -> Tally:
        key = split, objects
        if key not in self.groups:
            self.groups[key] = Tally(self.name, split, objects, self.calls)
        return self.groups[key]

    def as_json(self, real: LatentSet | None) -> dict[str, Any]:
        """Fidelity, dynamics, distribution and speed, over all prompts together."""
        tallies = list(self.groups.values())
        seen = [o for tally in tallies for o in tally.observations]
        things = [thing for o in seen for thing in o.things]
        pick: Callable[[str], float | None] = lambda n: mean(getattr(t, n) for t in things)  # noqa: E731
        values: dict[str, Any] = {
            "row": self.name, "videos": len(seen), "network_calls": self.calls,
            **{name: pick(name) for name in THING_MEASURES},
            "flicker": mean(o.flicker for o in seen),
        }  # fmt: skip
        if real and len(self.latents):
            values["frechet"] = self.latents.distance(real)
            values["fine_energy"] = self.latents.fine_share() / real.fine_share()
        values["diversity"] = self.diversity
        if self.reference:
            values["reference"] = self.reference
            values["reference_psnr_db"] = psnr(e for t in tallies for e in t.square)
            values["reference_cosine"] = mean(self.cosines)
        if self.step_cosines:
            values["step_cosine"] = [mean(one) for one in zip(*self.step_cosines, strict=True)]
        if self.denoising:
            values["denoising_seconds"] = median(self.denoising)
        if self.decoding:
            values["decoding_seconds"] = median(self.decoding)
        return {k: _rounded(v) for k, v in values.items() if v is not None}


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    if isinstance(value, float):
        return float(f"{min(value, 99.99) if value == math.inf else value:.5g}")
    return value
