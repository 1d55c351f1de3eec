"""Budgets, the learning rate over them, and the numbers that seed everything."""

from dataclasses import replace
from itertools import pairwise

import pytest

from tests.mini import nano
from turbodiffusion.errors import UsageError
from turbodiffusion.mini import data, i2v, i2v_judge, prompts, source, students, train_vae
from turbodiffusion.mini.optim import learning_rate
from turbodiffusion.mini.recipe import RECIPES, as_json, recipe
from turbodiffusion.mini.state import StageClock

STAGE = nano.vae_recipe(steps=1000, minutes=10, lr=2e-3, warmup=100, decay=0.2)


@pytest.mark.parametrize(
    ("step", "progress", "share"),
    [
        (0, 0.0, 0.01),  # the first step already moves
        (49, 0.05, 0.50),
        (99, 0.10, 1.00),
        (500, 0.50, 1.00),
        (800, 0.80, 1.00),
        (900, 0.90, 0.50),
        (990, 0.99, 0.05),
        (1000, 1.00, 0.00),
        (1001, 1.30, 0.00),  # over the budget it stays at zero and never turns negative
        (49, 0.90, 0.25),  # a budget of minutes may end within the warm-up
    ],
)
def test_learning_rate(step, progress, share):
    assert learning_rate(STAGE, step, progress) == pytest.approx(2e-3 * share, abs=1e-12)


def test_no_warmup_starts_at_full_rate():
    assert learning_rate(replace(STAGE, warmup=0), 0, 0.0) == 2e-3


class Time:
    """Stands for the module ``time`` where the clock reads it."""

    def __init__(self, monkeypatch):
        self.now = 5000.0
        monkeypatch.setattr("turbodiffusion.mini.state.time.monotonic", lambda: self.now)


def test_budget_of_steps_or_minutes_whichever_is_first(monkeypatch):
    time = Time(monkeypatch)
    clock = StageClock(STAGE)
    assert clock.progress == 0.0 and not clock.done
    clock.step, time.now = 250, time.now + 60
    assert clock.progress == 0.25, "steps lead"
    time.now += 5 * 60
    assert clock.progress == pytest.approx(0.6), "minutes lead"
    time.now += 4 * 60 - 1
    assert not clock.done
    time.now += 1
    assert clock.done
    clock = StageClock(STAGE)
    clock.step = 1000
    assert clock.done


def test_time_adds_up_over_runs_and_pauses_do_not_count(monkeypatch):
    time = Time(monkeypatch)
    first = StageClock(STAGE, run_minutes=3)
    time.now += 179
    assert not first.pause
    time.now += 1
    assert first.pause and not first.done and first.elapsed == 180
    time.now += 86400
    second = StageClock(STAGE, run_minutes=3)
    second.step, second.before = 10, 180.0
    assert second.elapsed == 180 and second.run_elapsed == 0 and not second.pause
    time.now += 120
    assert second.elapsed == 300 and second.progress == pytest.approx(0.5)
    assert not StageClock(STAGE).pause, "without a limit a run goes on to the end"


def test_saves_are_due_by_the_clock(monkeypatch):
    time = Time(monkeypatch)
    clock = StageClock(STAGE, save_seconds=60)
    time.now += 59
    assert not clock.due()
    time.now += 1
    assert clock.due() and not clock.due()
    time.now += 60
    assert clock.due()


def test_a_wrong_size_names_the_right_ones():
    with pytest.raises(UsageError, match="micro, mini") as caught:
        recipe("tiny")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_fit_their_cards(name):
    size = recipe(name)
    assert size.card.embedded and size.card.name.startswith(name)
    assert size.teacher.first_pool <= size.teacher.pool
    assert size.vae.crop[0] % size.card.vae.temporal_stride == 1
    assert size.vae.crop[1] % size.card.vae.spatial_stride == 0
    if (opening := size.teacher.opening) is not None:
        assert 0 < opening.share < 1 and opening.frames < size.card.frames
        assert opening.frames % size.card.vae.temporal_stride == 1
    plain = as_json(size.teacher)
    assert plain["stage"] == "TeacherRecipe" and plain["seed"] == size.teacher.seed


RANKS = 8  # of one host
LONGEST = 100_000  # steps; runs on a GPU end by their minutes long before


def training_seeds(size):
    """name → (first, last) of every range of scene seeds that training a size uses."""
    spans = {}
    teacher = size.teacher
    for name in ("vae", "decoder", "teacher"):
        stage = getattr(size, name)
        last = data.step_seed(stage, LONGEST, RANKS - 1)
        spans[f"steps of {name}"] = (data.step_seed(stage, 0, 0), last)
    added = teacher.pool + int(LONGEST * teacher.refresh)
    for rank in range(RANKS):
        low = data.pool_seed(teacher, rank, 0)
        spans[f"pool {rank}"] = (low, low + size.card.frames + added)
    return spans


@pytest.mark.parametrize("name", RECIPES)
def test_no_training_clip_has_the_number_of_an_evaluation_clip(name):
    spans = training_seeds(recipe(name))
    spans["latent statistics"] = (train_vae.STAT_SEED, train_vae.STAT_SEED + 2048)
    parts = [*i2v.PARTS, *i2v.DISTILLED, *i2v.ALIGNED]
    for seed in {*students.SEEDS.values(), *(part.seed for part in parts)}:
        first = source.pool_seed(seed)
        spans[f"student {seed}"] = (first, first + 1_000_000)
    for lowest in (prompts.SEED, i2v_judge.SEED):
        touching = {
            key: span
            for key, span in spans.items()
            if span[0] <= lowest + 100_000 and span[1] >= lowest
        }
        assert not touching


@pytest.mark.parametrize("name", RECIPES)
def test_processes_render_different_clips(name):
    spans = sorted(v for k, v in training_seeds(recipe(name)).items() if k.startswith("pool"))
    assert all(a[1] < b[0] for a, b in pairwise(spans))
    vae = recipe(name).vae
    seeds = [data.step_seed(vae, step, rank) for step in range(50) for rank in range(64)]
    assert len(set(seeds)) == len(seeds)
