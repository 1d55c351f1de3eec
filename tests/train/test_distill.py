"""Who learns when, and by which losses."""

from __future__ import annotations

import pytest

from tests.train.tiny import Smooth, batch, generator, networks
from turbodiffusion.errors import UsageError
from turbodiffusion.train.consistency import Continuous, Discrete
from turbodiffusion.train.distill import Distillation, Schedule
from turbodiffusion.train.distribution import DistributionMatching
from turbodiffusion.train.losses import Networks
from turbodiffusion.train.times import UniformShift

TIMES = UniformShift(5)


def test_schedule_by_hand():
    """W = 3, Fq = 4: students 0 1 2 3 7 11, critics between."""
    schedule = Schedule(warmup=3, every=4)
    students = [i for i in range(13) if schedule.is_student(i)]
    assert students == [0, 1, 2, 3, 7, 11]
    assert [schedule.student_step(i) for i in students] == [0, 1, 2, 3, 4, 5]
    critics = [i for i in range(13) if not schedule.is_student(i)]
    assert [schedule.critic_step(i) for i in critics] == list(range(len(critics)))


@pytest.mark.parametrize(("warmup", "every"), [(0, 1), (0, 5), (200, 5), (7, 10)])
def test_both_counts_have_no_gaps(warmup, every):
    schedule = Schedule(warmup, every)
    students = [i for i in range(500) if schedule.is_student(i)]
    critics = [i for i in range(500) if not schedule.is_student(i)]
    assert [schedule.student_step(i) for i in students] == list(range(len(students)))
    assert [schedule.critic_step(i) for i in critics] == list(range(len(critics)))


def test_without_a_critic_every_iteration_is_the_students():
    schedule = Schedule(3, 5, critic=False)
    assert all(schedule.is_student(i) and schedule.student_step(i) == i for i in range(20))


def test_phases():
    loss = Continuous(TIMES, warmup=3)
    objective = Distillation(networks(), loss, DistributionMatching(TIMES), every=4)
    phases = [objective.phase(i) for i in range(9)]
    assert [p.trains == "student" for p in phases] == [True] * 4 + [False] * 3 + [True, False]
    assert [len(p.closures) for p in phases] == [1, 1, 1, 2, 1, 1, 1, 2, 1]
    assert [p.ema for p in phases] == [0, 1, 2, 3, None, None, None, 4, None]
    assert [p.step for p in phases] == [0, 1, 2, 3, 0, 1, 2, 4, 3]
    named = [
        [next(iter(c(batch(1), generator()).metrics)) for c in p.closures] for p in phases[3:5]
    ]
    assert named == [["scm", "dmd"], ["critic"]]


def test_losses_that_are_left_out():
    nets, both = networks(), DistributionMatching(TIMES)
    alone = Distillation(nets, Discrete(), DistributionMatching(TIMES, scale=0.0))
    assert all(len(alone.phase(i).closures) == 1 for i in range(8))
    no_fake = Distillation(Networks(Smooth(1), Smooth(2)), Discrete(), both)
    assert all(no_fake.phase(i).trains == "student" for i in range(8))
    pure = Distillation(nets, Continuous(TIMES, scale=0.0, warmup=0), both)
    assert [len(pure.phase(i).closures) for i in range(2)] == [1, 1]
    assert "dmd" in pure.phase(0).closures[0](batch(1), generator()).metrics


@pytest.mark.parametrize("matching", [None, DistributionMatching(TIMES)])
def test_nothing_to_learn_from(matching):
    with pytest.raises(UsageError, match="scaled to 0"):
        Distillation(networks(), Continuous(TIMES, scale=0.0, warmup=5), matching)
