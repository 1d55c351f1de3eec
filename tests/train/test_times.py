"""Conversions of noise levels and the distributions they are drawn from."""

from __future__ import annotations

import math

import pytest
import torch

from tests.train.tiny import generator
from turbodiffusion.errors import UsageError
from turbodiffusion.train import times
from turbodiffusion.train.times import LogNormal, Restricted, UniformShift

GRID = torch.linspace(0, 0.999, 301, dtype=torch.float64)


def test_conversions_lead_back():
    angle = times.flow_to_angle(GRID)
    torch.testing.assert_close(times.angle_to_flow(angle), GRID, rtol=0, atol=1e-15)
    sigma = times.flow_to_sigma(GRID)
    torch.testing.assert_close(times.sigma_to_flow(sigma), GRID, rtol=0, atol=1e-15)
    torch.testing.assert_close(times.sigma_to_angle(sigma), angle, rtol=0, atol=1e-15)
    torch.testing.assert_close(angle.tan(), sigma, rtol=1e-12, atol=0)


def test_the_ends_are_exact():
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert times.flow_to_angle(ends).tolist() == [0.0, math.pi / 2]
    assert times.flow_to_sigma(ends.float()).isfinite().all()
    half_pi = torch.tensor(math.pi / 2, dtype=torch.float64)
    assert times.angle_to_flow(half_pi).item() == pytest.approx(1, abs=1e-15)


def test_shift():
    assert times.shift_flow(torch.tensor(0.5), 5).item() == pytest.approx(2.5 / 3)
    for none in (1.0, 0.0, -3.0):
        torch.testing.assert_close(times.shift_flow(GRID, none), GRID)


def test_log_normal_quantiles():
    tau = LogNormal(0.7, 1.6).draw(20000, generator())
    assert tau.shape == (20000, 1) and tau.dtype is torch.float64
    logs = times.flow_to_sigma(tau).log()
    assert logs.mean().item() == pytest.approx(0.7, abs=0.05)
    assert logs.std().item() == pytest.approx(1.6, abs=0.05)


def test_uniform_shift_quantiles():
    tau = UniformShift(5).draw(20000, generator())
    wanted = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    found = torch.quantile(tau, wanted)
    torch.testing.assert_close(found, 5 * wanted / (1 + 4 * wanted), rtol=0, atol=0.02)


def test_extreme_draws_stay_in_range():
    for mean in (-2000.0, 700.0, 2000.0):
        tau = LogNormal(mean, 1.0).draw(100, generator())
        assert tau.isfinite().all() and (tau >= 0).all() and (tau <= 1).all(), mean


@pytest.mark.parametrize("whole", [UniformShift(5), LogNormal(0.7, 1.6)], ids=lambda t: str(t))
def test_chances_lead_back(whole):
    chance = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    torch.testing.assert_close(whole.cdf(whole.quantile(chance)), chance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("whole", [UniformShift(5), LogNormal(0.7, 1.6)], ids=lambda t: str(t))
@pytest.mark.parametrize(("low", "high"), [(0.9, 1.0), (0.0, 0.9), (0.5, 0.6)])
def test_a_part_is_drawn_as_the_whole_draws_it(whole, low, high):
    part = Restricted(whole, low, high).draw(4000, generator())
    assert part.dtype is torch.float64 and part.shape == (4000, 1)
    assert low <= part.min() and part.max() <= high
    tau = whole.draw(40000, generator(1))
    kept = tau[(tau >= low) & (tau <= high)]
    chances = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    found, wanted = torch.quantile(part, chances), torch.quantile(kept, chances)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.05 * (high - low))


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.9), (-0.1, 0.5), (0.5, 1.1)])
def test_an_empty_part_is_refused(low, high):
    with pytest.raises(UsageError, match="lies between"):
        Restricted(UniformShift(5), low, high)
