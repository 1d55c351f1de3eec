"""What the rows of the quality table are asked for: which prompts, from which noise.

The world's own prompts come in kinds, seen and held-out combinations with one or two objects; or a
file gives them. All rows get the same ones, in batches that take turns among the kinds, so that a
run which is cut short has some of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from turbodiffusion.errors import UsageError
from turbodiffusion.mini import world
from turbodiffusion.mini.attributes import COLOURS, MOTIONS, SHAPES, is_held_out
from turbodiffusion.mini.metrics.diversity import SEEDS
from turbodiffusion.mini.world import Expected

SPLITS: tuple[world.Split, ...] = ("seen", "held_out")
SEED = 90_000_000
"""Evaluation scenes and noise are numbered from here, far from every training seed."""
DIVERSITY_SEED = SEED + 1_000_000
REAL_SEED = SEED + 2_000_000


@dataclass(frozen=True)
class Batch:
    """Prompts that are made together; ``scenes`` where the world wrote them."""

    split: str
    objects: int
    prompts: list[str]
    expected: list[Expected]
    seeds: list[int]
    scenes: world.Scenes | None = None
    repeats: bool = False
    """Several videos of each prompt, for the diversity of a row."""

    def __len__(self) -> int:
        return len(self.prompts)


def scenes_of(split: world.Split, objects: int, n: int) -> world.Scenes:
    """The evaluation scenes; the same for every model of every size."""
    seed = SEED + {"seen": 0, "held_out": 1}[split] + 2 * objects
    return world.sample_scenes(n, seed, split=split, two_objects=float(objects == 2))


def prompts_of(scenes: world.Scenes) -> list[str]:
    """The plainest caption of every scene; it names every attribute."""
    return [world.caption(scenes, i, 0) for i in range(len(scenes))]


def world_batches(
    counts: Sequence[int], n: int, batch: int, splits: Sequence[world.Split] = SPLITS
) -> list[Batch]:
    """``n`` prompts of each split with each of ``counts`` objects."""
    kinds = [list(_kind(split, k, n, batch)) for k in counts for split in splits]
    return [one for turn in zip_longest(*kinds) for one in turn if one is not None]


def _kind(split: world.Split, objects: int, n: int, batch: int) -> Iterator[Batch]:
    scenes = scenes_of(split, objects, n)
    prompts = prompts_of(scenes)
    for first in range(0, n, batch):
        part = range(first, min(first + batch, n))
        yield Batch(
            split, objects, [prompts[i] for i in part],
            [world.expected(scenes, i) for i in part], [SEED + i for i in part],
            scenes[first : first + batch],
        )  # fmt: skip


def repeated_batches(count: int, batch: int) -> list[Batch]:
    """``count`` prompts with one object, each from ``SEEDS`` noises."""
    scenes = world.sample_scenes(count, DIVERSITY_SEED, split="seen", two_objects=0.0)
    prompts = prompts_of(scenes)
    each = max(1, batch // SEEDS)
    batches = []
    for first in range(0, count, each):
        part = [i for i in range(first, min(first + each, count)) for _ in range(SEEDS)]
        seeds = [DIVERSITY_SEED + SEEDS * first + j for j in range(len(part))]
        expected = [world.expected(scenes, i) for i in part]
        batches.append(
            Batch("seen", 1, [prompts[i] for i in part], expected, seeds, repeats=True)
        )  # fmt: skip
    return batches


def given_batches(texts: Sequence[str], batch: int) -> tuple[list[Batch], list[tuple[str, str]]]:
    """Batches of a person's prompts, and (prompt, reason) of those that cannot be judged.

    What is understood is put into the words the model was trained on, as ``generate`` does.

    Raises:
        UsageError: none of them can be judged.
    """
    kinds: dict[tuple[str, int], list[tuple[int, str, Expected]]] = {}
    left = []
    for number, text in enumerate(texts):
        expected = world.parse(text)
        if expected is None or not expected.understood:
            left.append((text, _why(expected)))
            continue
        split = "held_out" if any(map(_held_out, expected.objects)) else "seen"
        known = kinds.setdefault((split, len(expected.objects)), [])
        known.append((number, world.canonical(expected), expected))
    if not kinds:
        raise UsageError(
            "mini-prompts",
            f"None of the {len(texts)} prompts can be judged: "
            f"{left[0][1] if left else 'the file is empty'}",
            "Write one prompt a line in the language that `turbodiffusion mini world` prints.",
        )
    batches = []
    for (split, objects), known in kinds.items():
        for first in range(0, len(known), batch):
            numbers, prompts, wanted = zip(*known[first : first + batch], strict=True)
            seeds = [SEED + number for number in numbers]
            batches.append(Batch(split, objects, list(prompts), list(wanted), seeds))
    return batches, left


def _held_out(thing: world.ExpectedObject) -> bool:
    """Whether all three attributes are named and their combination was kept out of training."""
    if thing.colour is None or thing.shape is None or thing.motion is None:
        return False
    return is_held_out(
        COLOURS.index(thing.colour), SHAPES.index(thing.shape), MOTIONS.index(thing.motion)
    )


def _why(expected: Expected | None) -> str:
    """One sentence about a prompt that cannot be judged."""
    if expected is None:
        return "Nothing in it belongs to the world."
    if expected.unknown:
        return f"Not of the world: {', '.join(expected.unknown)}."
    if expected.notes:
        return " ".join(expected.notes)
    return f"It names no object, only the background {expected.background}."
