"""The networks seen on a circle."""

from __future__ import annotations

import math

import pytest
import torch

from tests.train.tiny import SHAPE, Given, batch, networks, randn
from turbodiffusion.errors import UsageError
from turbodiffusion.train.losses import Batch
from turbodiffusion.train.times import angle_to_flow
from turbodiffusion.train.trigflow import ask, ask_guided, mix

ANGLES = torch.tensor([[0.01], [0.7], [1.5]], dtype=torch.float64)
X0, NOISE = randn(3, *SHAPE), randn(3, *SHAPE, seed=1)
T = ANGLES[..., None, None, None]


def test_a_perfect_network():
    answer = ask(
        Given(lambda x, tau: NOISE - X0), mix(X0, NOISE, ANGLES), ANGLES, batch().context_BSD,
        batch(),
    )  # fmt: skip
    torch.testing.assert_close(answer.velocity, T.cos() * NOISE - T.sin() * X0, rtol=0, atol=1e-13)
    torch.testing.assert_close(answer.clean, X0, rtol=0, atol=1e-13)


def test_what_the_network_is_shown():
    seen = {}
    x = mix(X0, NOISE, ANGLES)

    def network(shown, tau):
        seen.update(x=shown, tau=tau)
        return shown

    ask(Given(network), x, ANGLES, batch().context_BSD, batch())
    tau = angle_to_flow(ANGLES)[..., None, None, None]
    torch.testing.assert_close(seen["tau"], tau)
    torch.testing.assert_close(seen["x"], (1 - tau) * X0 + tau * NOISE, rtol=0, atol=1e-13)


def test_velocity_is_that_of_the_clean_latents():
    given, x = batch(), mix(X0, NOISE, ANGLES)
    answer = ask(networks().student, x, ANGLES, given.context_BSD, given)
    torch.testing.assert_close(
        answer.velocity, (T.cos() * x - answer.clean) / T.sin(), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("angle", "network"), [(0.0, "clean"), (math.pi / 2, "noise")])
def test_the_ends_need_no_division(angle, network):
    given, x = batch(), mix(X0, NOISE, torch.full((3, 1), angle))
    t = torch.full((3, 1), angle, dtype=torch.float64)
    v = networks().student(x, 1000 * angle_to_flow(t), given.context_BSD, None)
    answer = ask(networks().student, x, t, given.context_BSD, given)
    clean = x if network == "clean" else x - v
    torch.testing.assert_close(answer.clean, clean, rtol=0, atol=1e-12)
    assert answer.velocity.isfinite().all()


def test_guidance():
    given, x, teacher = batch(), mix(X0, NOISE, ANGLES), networks().need("teacher")
    cond = ask(teacher, x, ANGLES, given.context_BSD, given)
    uncond = ask(teacher, x, ANGLES, given.negative(), given)
    guided = ask_guided(teacher, x, ANGLES, given, 5.0)
    for name in ("velocity", "clean"):
        c, u = getattr(cond, name), getattr(uncond, name)
        torch.testing.assert_close(getattr(guided, name), u + 5 * (c - u))
    clean = T.cos() * x - T.sin() * guided.velocity
    torch.testing.assert_close(guided.clean, clean, rtol=0, atol=1e-12)
    assert not guided.velocity.requires_grad
    teacher.calls.clear()
    torch.testing.assert_close(ask_guided(teacher, x, ANGLES, given, 1.0).clean, cond.clean)
    assert len(teacher.calls) == 1


def test_guidance_needs_a_negative_prompt():
    given = Batch(X0, batch().context_BSD)
    with pytest.raises(UsageError, match="negative prompt"):
        ask_guided(networks().student, X0, ANGLES, given, 2.0)
