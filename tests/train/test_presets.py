"""The published numbers, and that every preset makes an objective that runs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.train.tiny import Smooth, batch, generator, networks
from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import card
from turbodiffusion.train.consistency import Continuous
from turbodiffusion.train.distribution import DistributionMatching
from turbodiffusion.train.presets import PRESETS, AlignmentLoss, DistillLoss, FlowLoss, preset
from turbodiffusion.train.times import LogNormal, UniformShift


@pytest.mark.parametrize(
    ("name", "rates", "every", "warmup", "mean", "sigma_max", "save"),
    [("1.3B", (2e-6, 4e-7), 5, 1000, 0.7, 80, 500), ("14B", (1e-6, 1e-7), 10, 0, 1.5, 200, 250)],
)
def test_published_distillation(name, rates, every, warmup, mean, sigma_max, save):
    made = preset(name, "rcm")
    assert isinstance(made.loss, DistillLoss) and made.fake_score is not None
    for optim, rate in zip((made.optim, made.fake_score), rates, strict=True):
        assert (optim.lr, optim.betas, optim.weight_decay, optim.eps) == (
            rate, (0.0, 0.999), 0.01, 1e-8,
        )  # fmt: skip
        assert (optim.warmup, optim.clip) == (100, 0)
    assert made.loss.consistency == Continuous(
        LogNormal(mean, 1.6), scale=100, guidance=5, warmup=warmup, derivative="full"
    )
    assert made.loss.matching == DistributionMatching(
        UniformShift(5), scale=1, guidance=5, steps=4, angles=None
    )
    assert (made.loss.every, made.loss.sigma_max, made.save_every) == (every, sigma_max, save)
    assert (made.steps, made.ema, made.micro_batch) == (100_000, 0.1, 1)


@pytest.mark.parametrize(("name", "batch_size", "shard"), [("1.3B", 4, 4), ("14B", 1, 32)])
def test_published_alignment(name, batch_size, shard):
    made = preset(name, "sla")
    assert made.loss == AlignmentLoss(LogNormal(1.5, 1.6), scale=1.0, topk=0.1)
    assert (made.optim.lr, made.optim.betas, made.optim.warmup) == (1e-5, (0.9, 0.999), 100)
    assert (made.micro_batch, made.parallel.shard) == (batch_size, shard)
    assert made.latent_frames == 21


def test_means_hold_the_length_of_the_video():
    small, large = (preset(name, "rcm") for name in ("1.3B", "14B"))
    assert small.loss.consistency.times.mean == pytest.approx(
        -0.8 + math.log(small.latent_frames) / 2, abs=0.005
    )
    assert large.loss.consistency.times.mean == pytest.approx(
        math.log(large.latent_frames) / 2, abs=0.03
    )
    mini = preset("mini", "rcm")
    assert mini.loss.consistency.times.mean == -0.8 + math.log(mini.latent_frames) / 2


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("stage", ["flow", "sla", "sla-flow", "rcm", "align", "match"])
def test_every_stage_runs(name, stage):
    made = preset(name, stage)
    assert made.batch % made.micro_batch == 0
    assert card(made.card).dit.num_heads % made.parallel.context == 0
    objective = made.loss.objective(replace(networks(), leader=Smooth(4)))
    for iteration in (0, 1, 1000, 1001):
        for closure in objective.phase(iteration).closures:
            assert closure(batch(1), generator()).loss.isfinite()


def test_black_box_tunes_without_a_teacher():
    made = preset("1.3B", "sla-flow")
    assert made.loss == FlowLoss(UniformShift(5), drop=0.0, topk=0.05)
    assert (made.batch, made.steps) == (64, 2000)


def test_names_that_do_not_exist():
    with pytest.raises(UsageError, match=r"1\.3B"):
        preset("7B", "rcm")
    with pytest.raises(UsageError, match="sla-flow"):
        preset("mini", "lora")
