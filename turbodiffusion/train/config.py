"""The settings of a training run: a preset, a file over it, single values over that.

A preset is a function's result, complete and valid. ``--config FILE`` holds a JSON or TOML object
of the same shape with what differs; ``--set optim.lr=1e-5`` changes one value by its dotted name.
Where a setting can be of several kinds, ``kind`` names one (``{"kind": "Discrete", "skip": 2}``);
so does the name alone, for its defaults: ``--set loss.consistency=Discrete``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import card
from turbodiffusion.parallel.activations import Mode
from turbodiffusion.train.optim import OptimSettings
from turbodiffusion.train.typed import changed, plain, refused

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class ParallelSettings:
    """How the processes of a run are used, see :mod:`turbodiffusion.parallel`.

    Attributes:
        shard: processes that share one copy of the parameters; 0, or more than there are: all.
        context: processes that share the tokens of one video.
        activations: what is computed again in the backward pass, in every ``every``-th block.
    """

    shard: int = 0
    context: int = 1
    activations: Mode = "none"
    every: int = 1


@dataclass(frozen=True)
class TrainConfig:
    """One run.

    Attributes:
        card: the model whose sizes the networks have.
        init: weights that the networks start from; empty: fresh ones.
        teacher: weights of the teacher, and of the fake score at first; empty: ``init``.
        leader: weights of the network that a student stays close to; empty: ``init``.
        data: folder of shards; ``noise`` stands for random latents of the card's size.
        cache: keep all samples in memory; None: where they take less than 2 GB.
        steps: optimiser steps over all runs. minutes: pause after this long; 0: do not.
        batch: samples of a step over all processes, passes and accumulation.
        micro_batch: samples of one pass through the network.
        latent_frames, height, width: of the videos, longer ones are cut; 0: the card's.
        dtype: computing precision; ``auto`` is bfloat16 on a GPU and float32 on a CPU.
        compile: let ``torch.compile`` fuse the blocks: a minute at the start, then faster steps.
        exact_derivative: continuous-time distillation in bfloat16 derives a float32 copy of the
            student, for networks of which every process can hold one.
        optim: of the student; fake_score: of the network of that name, where a stage has one.
        ema: width of the power-function average of the weights (0: none).
        save_every, log_every, sample_every: in steps; 0: never. keep: checkpoints that stay.
        sample_prompts, sample_seeds: videos of a drawing are every prompt with every seed.
        sample_steps: of the unaccelerated sampler in a drawing.
        bad_steps: broken steps in a row that end the run.
        vae: weights that decode the drawn samples; empty: what belongs to the card.
        loss: settings of the stage, a dataclass of :mod:`~.presets`.
    """

    stage: str
    preset: str
    card: str
    out: str
    init: str = ""
    teacher: str = ""
    leader: str = ""
    data: str = "noise"
    cache: bool | None = None
    seed: int = 0
    steps: int = 1000
    minutes: float = 0.0
    batch: int = 8
    micro_batch: int = 1
    latent_frames: int = 0
    height: int = 0
    width: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    exact_derivative: bool = False
    optim: OptimSettings = field(default_factory=OptimSettings)
    fake_score: OptimSettings = field(default_factory=OptimSettings)
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    ema: float = 0.1
    save_every: int = 500
    log_every: int = 50
    sample_every: int = 0
    sample_prompts: int = 2
    sample_seeds: int = 1
    sample_steps: int = 50
    keep: int = 3
    bad_steps: int = 10
    tensorboard: bool = False
    wandb: str = ""
    vae: str = ""
    loss: Any = None

    def __post_init__(self) -> None:
        card(self.card)  # an unknown one is an error
        counts = ("steps", "batch", "micro_batch", "keep", "log_every", "bad_steps",
                  "sample_prompts", "sample_seeds", "sample_steps")  # fmt: skip
        for name in counts:
            if getattr(self, name) < 1:
                raise refused(name, getattr(self, name), "at least 1", f"{name}=1")
        if self.batch % self.micro_batch:
            raise refused(
                "batch", self.batch, f"a multiple of micro_batch {self.micro_batch}",
                f"batch={-(-self.batch // self.micro_batch) * self.micro_batch}",
            )  # fmt: skip
        if not 0 <= self.ema < 0.28:  # the limit of the power function's width is 1/√12
            raise refused("ema", self.ema, "from 0 to 0.28", "ema=0.1")

    def passes(self, data_world: int) -> int:
        """Passes of each process that make one step, when ``data_world`` work side by side."""
        slots = self.batch // self.micro_batch
        if slots % data_world:
            raise UsageError(
                "train-batch",
                f"A batch of {self.batch} in parts of {self.micro_batch} cannot be shared by "
                f"{data_world} processes with samples of their own.",
                f"Use --set batch={-(-slots // data_world) * data_world * self.micro_batch}.",
            )
        return slots // data_world

    def as_json(self) -> dict[str, Any]:
        """Plain values, which :func:`change` takes back."""
        values: dict[str, Any] = json.loads(json.dumps(plain(self, TrainConfig)))
        return values


def read_file(path: Path) -> dict[str, Any]:
    """The object in a ``.json`` or ``.toml`` file.

    Raises:
        UsageError: no such file, another format, or not an object.
    """
    try:
        text = path.read_text("utf-8")
        if path.suffix == ".toml":
            values = _toml(text)
        elif path.suffix == ".json":
            values = json.loads(text)
        else:
            raise ValueError("its name ends in neither .json nor .toml")
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
        return values
    except (OSError, ValueError) as error:
        raise UsageError(
            "train-config",
            f"The settings in {path} cannot be read: {error}.",
            'Give a file such as {"steps": 1000, "optim": {"lr": 1e-5}}.',
        ) from error


def _toml(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError as error:
        raise ValueError("TOML needs Python 3.11; JSON works everywhere") from error
    return tomllib.loads(text)


def assignments(words: list[str]) -> dict[str, Any]:
    """``["optim.lr=1e-5", …]`` as a nested object; values are JSON where they parse as it."""
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise UsageError(
                "train-set", f"--set got {word!r}, which is no key=value.", "Use --set steps=1000."
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        *path, last = name.split(".")
        inner = values
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return values


def change(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """A copy of a settings dataclass with ``values``, nested ones inside.

    Raises:
        UsageError: an unknown name, or a value of another type.
    """
    return changed(settings, values)
