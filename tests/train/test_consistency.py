"""Consistency losses: gradients, the derivative along the teacher's path, broken samples."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.train.tiny import SHAPE, Given, Smooth, batch, generator, networks, randn
from turbodiffusion.errors import UsageError
from turbodiffusion.train import consistency
from turbodiffusion.train.consistency import Continuous, Discrete, Following, correction
from turbodiffusion.train.losses import Networks, call, noisy
from turbodiffusion.train.times import LogNormal, draw_angles
from turbodiffusion.train.trigflow import ask, ask_guided, mix

TIMES = LogNormal(0.0, 1.0)


def ingredients(nets, loss, size=3, seed=7):
    """x, t and the guided teacher's velocity as the loss draws them from ``generator(seed)``."""
    given, source = batch(size), generator(seed)
    t = draw_angles(loss.times, size, source)
    noise = torch.randn(given.latents_BCTHW.shape, generator=source)
    x = mix(given.latents_BCTHW, noise, t)
    return given, x, t, ask_guided(nets.need("teacher"), x, t, given, loss.guidance).velocity


def student(nets, given, x, t):
    return ask(nets.student, x, t, given.context_BSD, given)


@pytest.mark.parametrize("way", ["whole", "dual"])
def test_correction_is_the_change_of_the_clean_latents(way):
    """At r = 1, g = cos t · df/dt along the teacher's path, by central differences in float64."""
    nets, loss = networks(), Continuous(TIMES, way=way)
    given, x, t, f_teacher = ingredients(nets, loss)
    df = loss.derivative_of(nets, given, x, t, f_teacher)
    f = student(nets, given, x, t).velocity.detach()
    g = correction(f, f_teacher, df, x, t, 1.0)
    h = 1e-5
    ahead = student(nets, given, x + h * f_teacher, t + h).clean
    behind = student(nets, given, x - h * f_teacher, t - h).clean
    expected = t.cos()[..., None, None, None] * (ahead - behind) / (2 * h)
    torch.testing.assert_close(g, expected.detach(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("iteration", [0, 3, 10, 50])
def test_gradient_is_twice_the_normalised_correction(iteration):
    nets, loss = networks(), Continuous(TIMES, warmup=10, scale=100.0)
    given, x, t, f_teacher = ingredients(nets, loss)
    df = loss.derivative_of(nets, given, x, t, f_teacher)
    f = student(nets, given, x, t).velocity
    r = min(1.0, iteration / 10)
    g = correction(f.detach(), f_teacher, df, x, t, r)
    g = g / (g.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1) + 0.1)
    parameters = list(nets.student.parameters())
    expected = torch.autograd.grad(f, parameters, -200.0 * g)
    parts = loss.loss(nets, given, generator(7), iteration)
    found = torch.autograd.grad(parts.loss, parameters)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert parts.loss.item() == pytest.approx(100 * g.square().sum().item())
    assert parts.loss < 100 * 3  # below ``scale`` a sample, whatever is learned


def test_warm_up_scales_position_and_root_but_not_the_derivative():
    f, f_teacher, df, x = (randn(2, *SHAPE, seed=i) for i in range(4))
    t = torch.tensor([[0.4], [1.2]], dtype=torch.float64)
    c = t.cos()[..., None, None, None]
    torch.testing.assert_close(correction(f, f_teacher, df, x, t, 0.0), -c * (f - f_teacher) - df)


@pytest.mark.parametrize(("derivative", "tolerance"), [("semi", 2e-4), ("difference", 2e-4)])
def test_differences_come_close_to_the_derivative(derivative, tolerance):
    """Their error falls with the step: they are one-sided."""
    nets = networks()
    exact, other = (Continuous(TIMES, derivative=d) for d in ("full", derivative))
    given, x, t, f_teacher = ingredients(nets, exact)
    found, wanted = (loss.derivative_of(nets, given, x, t, f_teacher) for loss in (other, exact))
    assert (found - wanted).abs().max() < tolerance
    half = Continuous(TIMES, derivative=derivative, step=other.step / 2)
    closer = half.derivative_of(nets, given, x, t, f_teacher)
    assert (closer - wanted).norm() < 0.6 * (found - wanted).norm()  # first order in the step


def test_no_derivative_keeps_a_graph():
    nets, loss = networks(), Continuous(TIMES)
    given, x, t, f_teacher = ingredients(nets, loss)
    for name in ("full", "semi", "difference"):
        made = Continuous(TIMES, derivative=name).derivative_of(nets, given, x, t, f_teacher)
        assert not made.requires_grad


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_sample_adds_nothing(value, monkeypatch):
    nets, loss = networks(), Continuous(TIMES, warmup=0)
    whole = loss.loss(nets, batch(3), generator(7), 0)
    broken = batch(3)
    original = consistency.correction

    def poisoned(*args):
        g = original(*args)
        g[1, 0, 0, 0, 0] = value
        return g

    monkeypatch.setattr(consistency, "correction", poisoned)
    parts = loss.loss(nets, broken, generator(7), 0)
    assert parts.metrics["scm_broken"] == 1 and whole.metrics["scm_broken"] == 0
    gradients = torch.autograd.grad(parts.loss, list(nets.student.parameters()))
    assert all(g.isfinite().all() for g in gradients)
    monkeypatch.setattr(consistency, "correction", original)
    given, x, t, f_teacher = ingredients(nets, loss)
    df = loss.derivative_of(nets, given, x, t, f_teacher)
    f = student(nets, given, x, t).velocity
    g = correction(f.detach(), f_teacher, df, x, t, 1.0)
    g = g / (g.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1) + 0.1)
    g[1] = 0
    expected = torch.autograd.grad(f, list(nets.student.parameters()), -200.0 * g)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_an_answer_of_nan_gives_a_loss_of_zero():
    nets = Networks(Given(lambda x, tau: x * math.nan), Smooth(2))
    parts = Continuous(TIMES).loss(nets, batch(2), generator(), 5)
    assert parts.loss == 0 and parts.metrics["scm_broken"] == 2 and parts.metrics["scm_norm"] == 0


def test_a_student_that_knows_the_video_is_consistent():
    """v = (x − x0)/τ leads to x0 from everywhere: no loss in either time."""
    x0 = batch(2).latents_BCTHW
    oracle = Given(lambda x, tau: (x - x0) / tau)
    nets = Networks(oracle, oracle)
    parts = Discrete(guidance=1.0, skip=3).loss(nets, batch(2), generator(), 0)
    assert parts.loss.item() == pytest.approx(0, abs=1e-18)
    parts = Continuous(TIMES, guidance=1.0, warmup=0).loss(nets, batch(2), generator(), 0)
    assert parts.metrics["scm_norm"] < 1e-10


def gaussian(deviation):
    """For data N(0, s²): the teacher, and the student that jumps to the end of its paths.

    A path is x_t = z·√(cos²t·s² + sin²t), so its velocity and its end are known.
    """

    def on_circle(x, tau):
        t = torch.atan2(tau, 1 - tau)
        total = t.cos() + t.sin()
        return x * total, t, total, (t.cos().square() * deviation**2 + t.sin().square()).sqrt()

    def velocity(x, tau):  # F on the circle is x'/x times x; v follows from F
        x, t, total, size = on_circle(x, tau)
        f = t.sin() * t.cos() * (1 - deviation**2) / size**2 * x
        return total * f - (t.cos() - t.sin()) * x

    def jump(x, tau):
        x, t, total, size = on_circle(x, tau)
        return (x - total * deviation * x / size) / t.sin()

    return Given(velocity), Given(jump)


def test_the_known_map_of_a_gaussian_is_the_solution():
    teacher, jump = gaussian(0.5)

    def run(loss, student):
        return loss.loss(Networks(student, teacher), batch(4), generator(), 0)

    scm = Continuous(TIMES, guidance=1.0, warmup=0)
    assert run(scm, jump).metrics["scm_norm"] < 1e-8
    assert run(scm, teacher).metrics["scm_norm"] > 0.1
    coarse, fine = (run(Discrete(guidance=1.0, steps=n), jump).loss.item() for n in (48, 480))
    # One Euler step errs by h², the loss by h⁴; a random time differs between both.
    assert fine < 1e-2 * coarse < 1e-2 * run(Discrete(guidance=1.0), teacher).loss.item()


@pytest.mark.parametrize("skip", [1, 4])
def test_angles_of_a_discrete_path(skip):
    angles = Discrete(skip=skip).angles(500, generator())
    assert len(angles) == skip + 1
    flow = torch.stack([a.sin() / (a.sin() + a.cos()) for a in angles])
    grid = 1 - flow / (5 - 4 * flow)  # the shift undone
    torch.testing.assert_close(grid.diff(dim=0), torch.full_like(grid[1:], 1 / 48))
    assert grid.min() >= 0 and grid.max() <= 1


def test_discrete_loss_by_hand():
    nets, loss = networks(), Discrete(guidance=3.0, scale=7.0)
    given, source = batch(2), generator(3)
    t, t_next = loss.angles(2, source)
    x = mix(given.latents_BCTHW, torch.randn(given.latents_BCTHW.shape, generator=source), t)
    f_teacher = ask_guided(nets.need("teacher"), x, t, given, 3.0).velocity
    step = (t - t_next)[..., None, None, None]
    target = student(nets, given, x - step * f_teacher, t_next).clean.detach()
    expected = 7 * (student(nets, given, x, t).clean - target).square().sum()
    parts = loss.loss(nets, given, generator(3), 0)
    torch.testing.assert_close(parts.loss, expected)
    parameters = list(nets.student.parameters())
    for a, b in zip(
        torch.autograd.grad(parts.loss, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_teacher_is_needed():
    with pytest.raises(UsageError, match="teacher"):
        Continuous(TIMES).loss(Networks(Smooth(1)), batch(), generator(), 0)


def test_following_is_the_squared_distance_of_the_velocities():
    nets = replace(networks(), leader=Smooth(4))
    loss, given = Following(TIMES, scale=3.0), batch()
    parts = loss.loss(nets, given, generator(7), 0)
    source = generator(7)
    tau = TIMES.draw(3, source)
    x = noisy(given.latents_BCTHW, torch.randn(given.latents_BCTHW.shape, generator=source), tau)
    ours, theirs = (call(n, x, tau, given.context_BSD, given) for n in (nets.student, nets.leader))
    torch.testing.assert_close(parts.loss, 3.0 * (ours - theirs).square().sum())
    torch.testing.assert_close(parts.metrics["follow"], (ours - theirs).square().mean())
    parts.loss.backward()
    assert all(p.grad is not None for p in nets.student.parameters())
    assert all(p.grad is None for p in nets.leader.parameters())


def test_following_leaves_broken_samples_out():
    def broken(x, tau):
        return torch.where(torch.arange(3)[:, None, None, None, None] == 1, torch.nan, x)

    nets = replace(networks(), leader=Given(broken))
    parts = Following(TIMES).loss(nets, batch(), generator(), 0)
    assert parts.loss.isfinite() and int(parts.metrics["follow_broken"]) == 1


def test_following_needs_a_leader():
    with pytest.raises(UsageError, match="'leader'"):
        Following(TIMES).loss(networks(), batch(), generator(), 0)
