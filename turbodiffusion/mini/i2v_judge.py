"""How well the image-to-video model follows its image and its text.

An image is the first frame of a rendered scene that no training saw, the text its motion alone. Of
each video is measured: the likeness of its first frame to the image (PSNR in dB, bounded by the
autoencoder), whether colour, shape and background are those of the image's scene, and whether the
motion is that of the text. As a control the images are exchanged among the texts: what comes from
the image must then fall to chance, which is how often two scenes agree by themselves.

    rows = [measure(open_experts(size, folder, "int8"), "int8", samples=64)]
    print(table(rows))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.mini import world
from turbodiffusion.mini.captions import canonical, motion_only
from turbodiffusion.mini.data import render_clips
from turbodiffusion.mini.export import find_part
from turbodiffusion.mini.images import i2v_card
from turbodiffusion.mini.judge import judge, score
from turbodiffusion.mini.recipe import SizeRecipe
from turbodiffusion.models.cards import card
from turbodiffusion.pipeline.load import load
from turbodiffusion.pipeline.pipeline import Pipeline
from turbodiffusion.pipeline.request import Request, resolve
from turbodiffusion.weights.find import Files

SEED = 91_000_000
FROM_IMAGE = ("colour", "shape", "background")
FILES = {
    "teacher": "i2v_teacher_{}", "dense": "i2v_dense_{}", "merged": "i2v_merged_{}",
    "turbo": "i2v_turbo_{}", "int8": "i2v_{}_int8",
}  # fmt: skip
"""Form → part names of its two files; ``int8`` is what ships."""
ROWS = ("vae", "teacher", "teacher-4", "dense", "merged", "turbo", "int8", "exchanged")
AIM_PSNR = 26.0
"""Least likeness of the first frame that the recipe aims at, dB."""


@dataclass(frozen=True)
class ImageRow:
    """Means over ``samples`` videos; attributes are shares of right ones.

    ``psnr`` of the first frame is the mean in dB and ``psnr_least`` that of the worst video.
    """

    name: str
    samples: int
    steps: int
    psnr: float
    psnr_least: float
    colour: float
    shape: float
    background: float
    motion: float
    joint: float

    def as_json(self) -> dict[str, Any]:
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def open_experts(size: SizeRecipe, folder: Path, form: str, device: str | None = None) -> Pipeline:
    """Both experts in one of ``FILES`` forms, from ``folder`` or the package."""
    teacher = i2v_card(size)
    one = teacher if form == "teacher" else card(teacher.name.removesuffix("-teacher"))
    parts = {expert: FILES[form].format(expert) for expert in one.experts}
    files = Files(
        one, {expert: find_part(size, folder, part) for expert, part in parts.items()},
        *(find_part(size, folder, part) for part in ("vae", "text", "tokenizer")),
    )  # fmt: skip
    return load(files, device=device)


def scenes_of(samples: int) -> world.Scenes:
    """The scenes of the measurement; every row sees the same ones."""
    return world.sample_scenes(samples, SEED, split="held_out", two_objects=0.0)


def chance(samples: int) -> dict[str, float]:
    """How often a scene agrees with the one whose image the control gives it."""
    scenes = scenes_of(samples)
    pairs = [(scenes[i], scenes[(i + 1) % samples]) for i in range(samples)]
    return {
        name: sum(bool((_first(a, name) == _first(b, name)).item()) for a, b in pairs) / samples
        for name in FROM_IMAGE
    }


def _first(scenes: world.Scenes, name: str) -> Tensor:
    values: Tensor = getattr(scenes, name)
    return values[0] if name == "background" else values[0, 0]


def psnr(frame_HWC: Tensor, image_HWC: Tensor) -> float:
    """Of two pictures in [0, 1], dB; at most 99."""
    error = (frame_HWC.double() - image_HWC.double()).square().mean().clamp_min(1e-10)
    return min(99.0, float(-10 * error.log10()))


Make = Callable[[Tensor, str, int], Tensor]
"""(clip in [−1, 1], text, seed) → video (F, H, W, 3) in [0, 1]."""


def measure(
    pipe: Pipeline, name: str, *, samples: int, exchange: bool = False, steps: int | None = None,
    on_video: Callable[[int], None] | None = None,
) -> ImageRow:  # fmt: skip
    """One row: ``samples`` videos by the sampler of the pipeline's card, each made alone.

    Args:
        exchange: give each text the image of the next scene, but ask for what its own shows.
    """
    request = resolve(Request("-", steps=steps), pipe.card)
    negative = pipe.encode_prompts([""]) if request.guided else None

    def make(clip_CFHW: Tensor, text: str, seed: int) -> Tensor:
        one = resolve(Request(text, seed=seed, steps=steps), pipe.card)
        assert one.frames
        y = pipe.condition(clip_CFHW[:, 0], one.frames)
        latents = pipe.denoise([one], pipe.encode_prompts([text]), negative, y)
        return torch.cat(list(pipe.decode(latents)), 1)[0].float() / 255

    assert request.steps
    return _measured(pipe, name, make, samples, exchange, request.steps, on_video)


def measure_vae(pipe: Pipeline, samples: int) -> ImageRow:
    """The bound of every other row: the true clips through the autoencoder."""

    def make(clip_CFHW: Tensor, text: str, seed: int) -> Tensor:
        return (pipe.reconstruct(clip_CFHW[None])[0].permute(1, 2, 3, 0).clamp(-1, 1) + 1) / 2

    return _measured(pipe, "vae", make, samples, False, 0, None)


def _measured(
    pipe: Pipeline, name: str, make: Make, samples: int, exchange: bool, steps: int,
    on_video: Callable[[int], None] | None,
) -> ImageRow:  # fmt: skip
    scenes, one = scenes_of(samples), pipe.card
    likeness: list[float] = []
    marks: dict[str, list[bool]] = {key: [] for key in (*FROM_IMAGE, "motion", "joint")}
    for i in range(samples):
        shown = (i + 1) % samples if exchange else i
        clip = render_clips(scenes[shown], one.frames, one.height, pipe.device)[0]
        text = canonical(motion_only(world.expected(scenes, i)))
        video = make(clip, text, SEED + i).cpu()
        likeness.append(psnr(video[0], (clip[:, 0].permute(1, 2, 0).cpu() + 1) / 2))
        found = score(judge(video), world.expected(scenes, i))
        for key, values in marks.items():
            values.append(bool(found[key]))
        if on_video:
            on_video(i + 1)
    shares = {key: sum(values) / samples for key, values in marks.items()}
    mean = sum(likeness) / samples
    return ImageRow(name, samples, steps, mean, min(likeness), **shares)


def measure_rows(
    size: SizeRecipe, folder: Path, names: list[str], samples: int, device: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[ImageRow]:  # fmt: skip
    """The rows called ``names`` of ``ROWS``; ``exchanged`` is the control of ``int8``.

    Raises:
        UsageError: an unknown row. WeightsError: its files are neither in ``folder`` nor packaged.
    """
    if unknown := set(names) - set(ROWS):
        raise UsageError("mini-row", f"There is no row {sorted(unknown)[0]!r}.",
                         f"Rows are {', '.join(ROWS)}.")  # fmt: skip
    opened: dict[str, Pipeline] = {}
    rows = []
    same = {"vae": "int8", "exchanged": "int8", "teacher-4": "teacher"}
    if own := [same.get(name, name) for name in names if name != "vae"]:
        same["vae"] = own[0]  # any of them has the autoencoder
    for name in names:
        form = same.get(name, name)
        if form not in opened:
            opened[form] = open_experts(size, folder, form, device)
        if name == "vae":
            rows.append(measure_vae(opened[form], samples))
        else:
            steps = 4 if name == "teacher-4" else None
            rows.append(
                measure(opened[form], name, samples=samples, exchange=name == "exchanged",
                        steps=steps)
            )  # fmt: skip
        say(f"{name}: done")
    return rows


def table(rows: list[ImageRow]) -> str:
    """The rows as text, shares in percent."""
    lines = [f"{'row':<11}{'n':>5}{'steps':>7}{'PSNR':>7}{'worst':>7}"
             + "".join(f"{key:>12}" for key in (*FROM_IMAGE, "motion", "joint"))]  # fmt: skip
    for row in rows:
        shares = (row.colour, row.shape, row.background, row.motion, row.joint)
        lines.append(
            f"{row.name:<11}{row.samples:>5}{row.steps or '-':>7}{row.psnr:>7.1f}"
            f"{row.psnr_least:>7.1f}" + "".join(f"{100 * share:>11.1f}%" for share in shares)
        )
    agree = ", ".join(f"{k} {100 * v:.0f} %" for k, v in chance(rows[0].samples).items())
    return "\n".join([*lines, f"by chance, when images are exchanged: {agree}"])
