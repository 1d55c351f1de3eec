"""The settings of a training run: a preset, a file over it, single values over that.

A preset is a function's result, complete and valid. ``--config FILE`` holds a JSON or TOML object
of the same shape with what differs; ``--set optim.lr=1e-5`` changes one value by its dotted name.
Where a setting can be of several kinds, ``kind`` names one (``{"kind": "Discrete", "skip": 2}``);
so does the name alone, for its defaults: ``--set loss.consistency=Discrete``.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import card
from turbodiffusion.parallel.activations import Mode
from turbodiffusion.train.optim import OptimSettings

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
        teacher: weights of the teacher; empty: ``init``.
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
                raise _refused(name, getattr(self, name), "at least 1", f"{name}=1")
        if self.batch % self.micro_batch:
            raise _refused(
                "batch", self.batch, f"a multiple of micro_batch {self.micro_batch}",
                f"batch={-(-self.batch // self.micro_batch) * self.micro_batch}",
            )  # fmt: skip
        if not 0 <= self.ema < 0.28:  # the limit of the power function's width is 1/√12
            raise _refused("ema", self.ema, "from 0 to 0.28", "ema=0.1")

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
        plain: dict[str, Any] = json.loads(json.dumps(_plain(self, TrainConfig)))
        return plain


def _plain(value: Any, annotation: Any) -> Any:
    if not is_dataclass(value) or isinstance(value, type):
        return value
    hints = get_type_hints(type(value))
    found = {one.name: _plain(getattr(value, one.name), hints[one.name]) for one in fields(value)}
    several = len(_kinds(annotation)) > 1
    return {"kind": type(value).__name__, **found} if several else found


def _kinds(annotation: Any) -> dict[str, type]:
    """The dataclasses that a setting can be, by name."""
    options = get_args(annotation) or (annotation,)
    return {one.__name__: one for one in options if isinstance(one, type) and is_dataclass(one)}


def _refused(name: str, value: Any, allowed: str, example: str) -> UsageError:
    return UsageError(
        "train-setting", f"{name} must be {allowed}, not {value!r}.", f"Use --set {example}."
    )


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


def change(settings: Settings, values: Mapping[str, Any], prefix: str = "") -> Settings:
    """A copy of a settings dataclass with ``values``, nested ones inside.

    Raises:
        UsageError: an unknown name, or a value of another type.
    """
    assert is_dataclass(settings) and not isinstance(settings, type)
    changed = _values(type(settings), values, prefix, vars(settings))
    return replace(settings, **changed)


def _values(
    kind: type, values: Mapping[str, Any], prefix: str, current: Mapping[str, Any]
) -> dict[str, Any]:
    """``values`` for the fields of the dataclass ``kind``, each as its type asks."""
    hints = get_type_hints(kind)
    names = [one.name for one in fields(kind)]
    for name in values:
        if name not in names:
            near = get_close_matches(name, names, 1) or names
            raise UsageError(
                "train-setting-unknown",
                f"There is no setting {prefix}{name}; there are {', '.join(names)}.",
                f"Perhaps {prefix}{near[0]} was meant.",
            )
    return {
        name: _value(value, hints[name], f"{prefix}{name}", current.get(name))
        for name, value in values.items()
    }


def _value(value: Any, annotation: Any, name: str, current: Any) -> Any:
    """A value for one field: a dataclass from an object or a name, or anything :func:`_typed`."""
    kinds = _kinds(annotation)
    if isinstance(value, str) and value in kinds:
        value = {"kind": value}
    if not isinstance(value, Mapping):
        return _typed(value, annotation, name)
    inner = {key: one for key, one in value.items() if key != "kind"}
    same = is_dataclass(current) and value.get("kind") in (None, type(current).__name__)
    if same:
        return change(current, inner, f"{name}.")
    if not kinds:
        return _typed(value, annotation, name)
    chosen = value.get("kind", next(iter(kinds)) if len(kinds) == 1 else None)
    if chosen not in kinds:
        raise _refused(f"{name}.kind", chosen, f"one of {', '.join(kinds)}",
                       f"{name}={next(iter(kinds))}")  # fmt: skip
    given = _values(kinds[chosen], inner, f"{name}.", {})
    for one in fields(kinds[chosen]):
        if one.name not in given and one.default is MISSING and one.default_factory is MISSING:
            raise UsageError(
                "train-setting",
                f"{chosen} as {name} needs a value for {one.name}.",
                f"Give {name}.{one.name} as well.",
            )
    return kinds[chosen](**given)


def _typed(value: Any, kind: Any, name: str) -> Any:
    """``value`` as ``kind``: a plain type, a choice of words, a tuple, or one of several."""
    options = get_args(kind)
    if get_origin(kind) is Literal:
        if value in options:
            return value
        raise _refused(
            name, value, f"one of {', '.join(map(str, options))}", f"{name}={options[0]}"
        )
    if get_origin(kind) is types.UnionType:
        for one in options:
            if one is type(None):
                if value is None:
                    return None
                continue
            try:
                return _typed(value, one, name)
            except UsageError:
                continue
    elif get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        inner = options[0]
        if options[-1] is Ellipsis or len(value) == len(options):
            return tuple(_typed(one, inner, name) for one in value)
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif kind is str and not isinstance(value, (dict, list)):
        return str(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    shown = kind.__name__ if isinstance(kind, type) else str(kind)
    raise UsageError(
        "train-setting", f"{name} must be of type {shown}, not {value!r}.", "Correct the value."
    )
