"""Flow matching and alignment, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.train.tiny import Given, Smooth, batch, generator, networks
from turbodiffusion.errors import UsageError
from turbodiffusion.train.losses import FlowMatching, Networks, SparseAlignment, dtype_of, noisy
from turbodiffusion.train.times import LogNormal, UniformShift

TIMES = UniformShift(2)


def draws(times, x0, seed):
    source = generator(seed)
    tau = times.draw(x0.shape[0], source)
    return tau, torch.randn(x0.shape, generator=source)


def test_flow_matching_by_hand():
    nets, given = networks(), batch(3)
    x0 = given.latents_BCTHW
    tau, noise = draws(TIMES, x0, 1)
    parts = FlowMatching(nets, TIMES).loss(given, generator(1))
    t = tau[..., None, None, None]
    v = nets.student((1 - t) * x0 + t * noise, 1000 * tau, given.context_BSD, None)
    torch.testing.assert_close(parts.loss, (v - (noise - x0)).square().mean(), rtol=1e-6, atol=0)


def test_perfect_velocity_has_no_loss():
    x0 = batch(2).latents_BCTHW
    nets = Networks(Given(lambda x, tau: (x - x0) / tau))
    loss = FlowMatching(nets, UniformShift(20)).loss(batch(2), generator()).loss
    assert loss.item() == pytest.approx(0, abs=1e-10)


def test_captions_are_dropped_at_their_rate():
    seen = []
    network = Smooth(1)
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    given = batch(4000)
    FlowMatching(Networks(network), TIMES, drop=0.25).loss(given, generator())
    dropped = (seen[0] == given.negative()).flatten(1).all(1)
    kept = (seen[0] == given.context_BSD).flatten(1).all(1)
    assert (dropped ^ kept).all()
    assert dropped.double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_dropping_needs_a_negative_prompt():
    given = replace(batch(2), negative_BSD=None)
    with pytest.raises(UsageError, match="negative"):
        FlowMatching(networks(), TIMES, drop=0.1).loss(given, generator())
    assert FlowMatching(networks(), TIMES).loss(given, generator()).loss > 0


def test_alignment_by_hand():
    nets, given, times = networks(), batch(2), LogNormal(0.7, 1.6)
    tau, noise = draws(times, given.latents_BCTHW, 2)
    x = noisy(given.latents_BCTHW, noise, tau)
    pair = [n(x, 1000 * tau, given.context_BSD, None) for n in (nets.student, nets.teacher)]
    expected = 3 * (pair[0] - pair[1].detach()).square().mean()
    parts = SparseAlignment(nets, times, scale=3.0).loss(given, generator(2))
    torch.testing.assert_close(parts.loss, expected)
    parts.loss.backward()
    assert all(p.grad is not None for p in nets.student.parameters())
    assert all(p.grad is None for p in nets.teacher.parameters())


def test_guided_alignment_by_hand():
    """Of both answers and of their guided sum; the share that is logged is the sum's."""
    nets, given = networks(), batch(2)
    tau, noise = draws(TIMES, given.latents_BCTHW, 2)
    x = noisy(given.latents_BCTHW, noise, tau)
    errors = []
    for context in (given.context_BSD, given.negative()):
        student, teacher = (n(x, 1000 * tau, context, None) for n in (nets.student, nets.teacher))
        errors.append((student - teacher, teacher))
    (c, want_c), (u, want_u) = errors
    guided, target = u + 2.5 * (c - u), want_u + 2.5 * (want_c - want_u)
    parts = SparseAlignment(nets, TIMES, 3.0, guidance=2.5).loss(given, generator(2))
    expected = sum(e.square().mean() for e in (c, u, guided))
    torch.testing.assert_close(parts.loss, expected)
    share = guided.square().mean() / target.square().mean()
    torch.testing.assert_close(parts.metrics["sla_share"], share.detach())


def test_guided_alignment_needs_a_negative_prompt():
    given = replace(batch(2), negative_BSD=None)
    with pytest.raises(UsageError, match="negative"):
        SparseAlignment(networks(), TIMES, guidance=2.0).loss(given, generator())


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_alignment_ends_at_the_teacher(guidance):
    nets = networks()
    same = Networks(nets.teacher, nets.teacher)
    loss = SparseAlignment(same, LogNormal(1.5, 1.6), guidance=guidance)
    assert loss.loss(batch(2), generator()).loss == 0


def test_every_iteration_is_the_students():
    phase = FlowMatching(networks(), TIMES).phase(17)
    assert (phase.trains, phase.step, phase.ema, len(phase.closures)) == ("student", 17, 17, 1)


def test_computing_precision_goes_before_the_stored_one():
    network = Smooth(1)
    assert dtype_of(network) is torch.float64
    network.compute_dtype = torch.bfloat16
    assert dtype_of(network) is torch.bfloat16
