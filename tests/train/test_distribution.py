"""Distribution matching: the student's gradient, the critic's loss, the simulated videos."""

from __future__ import annotations

import math

import pytest
import torch

from tests.train.tiny import SHAPE, Given, batch, generator, networks
from turbodiffusion.train.distribution import DistributionMatching
from turbodiffusion.train.losses import Networks
from turbodiffusion.train.times import UniformShift, draw_angles
from turbodiffusion.train.trigflow import ask, ask_guided, mix

TIMES = UniformShift(5)


def by_hand(nets, loss, iteration, seed=9):
    """The student's video and G, from the same draws."""
    given, source = batch(2), generator(seed)
    clean = loss.simulate(nets, given, source, iteration)
    t = draw_angles(TIMES, 2, source)
    x = mix(clean, torch.randn(clean.shape, generator=source), t).detach()
    fake = ask(nets.fake_score, x, t, given.context_BSD, given).clean
    real = ask_guided(nets.teacher, x, t, given, loss.guidance).clean
    gap = (clean - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    return clean, ((fake - real) / gap).detach()


@pytest.mark.parametrize("iteration", [0, 2, 7])
def test_gradient_of_the_student(iteration):
    nets, loss = networks(), DistributionMatching(TIMES, scale=3.0)
    clean, push = by_hand(nets, loss, iteration)
    parameters = list(nets.student.parameters())
    expected = torch.autograd.grad(clean, parameters, 2 * 3.0 * push)
    parts = loss.student_loss(nets, batch(2), generator(9), iteration)
    for a, b in zip(torch.autograd.grad(parts.loss, parameters), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert parts.loss.item() == pytest.approx(3 * push.square().sum().item())


def test_the_student_trains_alone():
    nets, loss = networks(), DistributionMatching(TIMES)
    loss.student_loss(nets, batch(2), generator(), 1).loss.backward()
    assert all(p.grad is not None for p in nets.student.parameters())
    assert all(p.grad is None for p in (*nets.teacher.parameters(), *nets.fake_score.parameters()))
    nets = networks()
    loss.critic_loss(nets, batch(2), generator(), 1).loss.backward()
    assert all(p.grad is not None for p in nets.fake_score.parameters())
    assert all(p.grad is None for p in (*nets.teacher.parameters(), *nets.student.parameters()))


def test_no_push_where_fake_and_real_agree():
    nets = networks()
    same = Networks(nets.student, nets.teacher, nets.teacher)
    loss = DistributionMatching(TIMES, guidance=1.0)
    assert loss.student_loss(same, batch(2), generator(), 3).loss == 0


def test_critic_is_flow_matching_of_the_wrapped_target():
    """Σ (x̂0 − x_fake)²/sin²t, as published, equals the form without a division."""
    nets, loss = networks(), DistributionMatching(TIMES)
    given, source = batch(2), generator(4)
    clean = loss.simulate(nets, given, source, 2).detach()
    t = draw_angles(TIMES, 2, source)
    x = mix(clean, torch.randn(clean.shape, generator=source), t)
    fake = ask(nets.fake_score, x, t, given.context_BSD, given).clean
    expected = ((clean - fake) / t.sin()[..., None, None, None]).square().sum()
    parts = loss.critic_loss(nets, batch(2), generator(4), 2)
    torch.testing.assert_close(parts.loss, expected, rtol=1e-9, atol=0)
    parameters = list(nets.fake_score.parameters())
    for a, b in zip(
        torch.autograd.grad(parts.loss, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert parts.metrics["critic"].item() == pytest.approx(expected.item() / clean.numel())


def test_a_perfect_critic_has_no_loss():
    """The student always makes one video; the fake score knows it."""
    video = torch.ones(2, *SHAPE, dtype=torch.float64)
    knows = Given(lambda x, tau: (x - video) / tau)
    nets = Networks(knows, knows, knows)
    loss = DistributionMatching(TIMES).critic_loss(nets, batch(2), generator(), 3).loss
    assert loss.item() == pytest.approx(0, abs=1e-18)


def test_calls_cycle_and_their_angles_fall():
    nets, loss = networks(), DistributionMatching(TIMES, steps=4)
    for iteration in range(9):
        nets.student.calls.clear()
        loss.simulate(nets, batch(2), generator(iteration), iteration)
        told = torch.stack([timestep for _, timestep in nets.student.calls])
        assert len(told) == iteration % 4 + 1
        torch.testing.assert_close(told[0], torch.full((2, 1), 1000.0, dtype=torch.float64))
        assert (told.diff(dim=0) <= 0).all()
    assert not torch.equal(told[0], loss.simulate(nets, batch(2), generator(1), 1))


def test_fixed_angles():
    nets = networks()
    loss = DistributionMatching(TIMES, angles=(1.5, 1.4, 1.0))
    loss.simulate(nets, batch(2), generator(), 3)
    wanted = [1000 * math.sin(a) / (math.sin(a) + math.cos(a)) for a in (math.pi / 2, 1.5, 1.4, 1)]
    assert [t[0].item() for _, t in nets.student.calls] == pytest.approx(wanted)


def test_only_the_last_call_has_a_graph():
    nets = networks()
    DistributionMatching(TIMES).simulate(nets, batch(2), generator(), 3).sum().backward()
    inputs = [x for x, _ in nets.student.calls]
    assert len(inputs) == 4 and not any(x.requires_grad for x in inputs)


def test_a_broken_sample_adds_nothing():
    nets = networks()
    first = Given(lambda x, tau: torch.where(torch.arange(2).view(2, 1, 1, 1, 1) == 0, math.nan, x))
    broken = Networks(nets.student, nets.teacher, first)
    parts = DistributionMatching(TIMES).student_loss(broken, batch(2), generator(), 0)
    assert parts.metrics["dmd_broken"] == 1 and parts.loss.isfinite() and parts.loss > 0
    gradients = torch.autograd.grad(parts.loss, list(nets.student.parameters()))
    assert all(g.isfinite().all() for g in gradients)
