"""How the embedded models are trained, as data.

Each size has a recipe for its VAE and one for its teacher. A stage ends when it has used its
``steps`` or its ``minutes`` of training, whichever comes first; the learning rate is constant
after a short warm-up and falls to zero over the last ``decay`` of that budget, so a stage can be
cut into any number of runs without changing the schedule.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import ModelCard, card


@dataclass(frozen=True)
class Stage:
    """Budget and optimiser of one stage. ``minutes`` counts training time over all its runs."""

    steps: int
    minutes: float
    batch: int
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    seed: int
    warmup: int = 200
    decay: float = 0.2
    clip: float = 1.0
    ema: float = 0.999


@dataclass(frozen=True)
class VAERecipe(Stage):
    """Reconstruction: L1 + squared error + ``kl`` · KL, on crops around edges and whole clips.

    ``crop`` is (frames, pixels); ``full_every`` inserts a step on whole clips (0: never), with
    ``full_batch`` of them; ``still_every`` a step on short crops of 5 frames.
    """

    crop: tuple[int, int] = (17, 64)
    kl: float = 1e-4
    edge_share: float = 0.8
    crops_per_clip: int = 4
    full_every: int = 0
    full_batch: int = 4
    still_every: int = 4


@dataclass(frozen=True)
class Opening:
    """The first part of a teacher's training, on clips with fewer frames.

    A clip of ``frames`` shows the whole of its motion at a lower rate, at the full side: shapes,
    colours, places and what words mean are learned there at a fraction of the tokens. It takes
    ``share`` of the stage's budget, ``batch`` clips a step, and renews its pool as the stage does.
    """

    share: float
    frames: int
    batch: int


@dataclass(frozen=True)
class TeacherRecipe(Stage):
    """Flow matching on cached latents; the text encoder learns with the network.

    ``shift`` bends the uniform noise levels; ``drop`` is the share of empty captions that teaches
    guidance; ``two_objects`` is the share of clips with two; ``pool`` clips are kept as latents and
    ``refresh`` new ones replace the oldest at each step. ``matrix_lr`` is the rate of
    :class:`~turbodiffusion.mini.muon.Muon` for the matrices of the DiT's blocks (0: AdamW for all).
    """

    shift: float = 2.0
    drop: float = 0.1
    two_objects: float = 0.3
    pool: int = 16384
    first_pool: int = 4096
    refresh: float = 4.0
    matrix_lr: float = 0.0
    opening: Opening | None = None


@dataclass(frozen=True)
class SizeRecipe:
    """The recipe of one embedded size, and the name of its card.

    ``student`` is the network that ships, and ``image_student`` that for image to video: ``rcm``
    attends densely, ``turbo`` sparsely. The sparse one is chosen when its rows hold their
    gates in ``mini judge``.
    """

    card_name: str
    vae: VAERecipe
    decoder: VAERecipe
    teacher: TeacherRecipe
    student: Literal["rcm", "turbo"] = "rcm"
    image_student: Literal["rcm", "turbo"] = "rcm"

    @property
    def card(self) -> ModelCard:
        return card(self.card_name)


RECIPES: dict[str, SizeRecipe] = {
    "micro": SizeRecipe(
        "micro-teacher",
        vae=VAERecipe(
            steps=8000, minutes=150, batch=32, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0,
            seed=11, crops_per_clip=1,
        ),
        decoder=VAERecipe(
            steps=6000, minutes=100, batch=32, lr=5e-4, betas=(0.9, 0.95), weight_decay=0.0,
            seed=13, crops_per_clip=1, decay=0.5,
        ),
        teacher=TeacherRecipe(
            steps=30000, minutes=600, batch=256, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01,
            seed=12, pool=8192, first_pool=4096, refresh=4,
        ),
    ),
    "mini": SizeRecipe(
        "mini-teacher",
        vae=VAERecipe(
            steps=10000, minutes=9, batch=32, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0,
            seed=21, full_every=8,
        ),
        decoder=VAERecipe(
            steps=6000, minutes=4, batch=32, lr=5e-4, betas=(0.9, 0.95), weight_decay=0.0,
            seed=23, full_every=8, decay=0.5,
        ),
        teacher=TeacherRecipe(
            steps=60000, minutes=15, batch=64, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01,
            seed=22, two_objects=0.5, pool=16384, first_pool=4096, refresh=0.5, matrix_lr=5e-3,
            opening=Opening(share=0.35, frames=9, batch=192), decay=0.3,
        ),
        student="turbo",
    ),
}  # fmt: skip


def recipe(size: str) -> SizeRecipe:
    """The recipe called ``size``."""
    if size not in RECIPES:
        raise UsageError(
            "mini-size",
            f"There is no embedded size {size!r}; sizes are {', '.join(RECIPES)}.",
            "Give one of these with --size.",
        )
    return RECIPES[size]


def as_json(stage: Stage) -> dict[str, Any]:
    """The stage's settings as plain values for reports."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(stage).items()}
    return {"stage": type(stage).__name__, **values}
