"""Time tables of both samplers: values of the released ones, exact arithmetic, refusals."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from turbodiffusion.errors import UsageError
from turbodiffusion.sampling.schedule import (
    flow_sigmas,
    flow_timesteps,
    model_timestep,
    rcm_times,
)

MIDDLE = [0.933781061416858, 0.852895394823775, 0.608979049230431]
FIRST = {
    80: (0.9876543209876543, 988),
    120: (0.99173553719, 992),
    200: (0.9950248756218906, 996),
    1600: (0.99937539, 1000),
}


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
@pytest.mark.parametrize("sigma_max", FIRST)
def test_rcm_times(sigma_max: float, num_steps: int) -> None:
    times = rcm_times(num_steps, sigma_max)
    first, told = FIRST[sigma_max]
    assert times.dtype == torch.float64
    assert times.tolist()[1:] == pytest.approx([*MIDDLE[: num_steps - 1], 0.0], abs=1e-12, rel=0)
    digits = 1e-12 if sigma_max in (80, 200) else 1e-8 if sigma_max == 1600 else 1e-11
    assert times[0].item() == pytest.approx(first, abs=digits, rel=0)
    assert model_timestep(times)[:-1].tolist() == [told, 932, 852, 608][:num_steps]


@pytest.mark.parametrize("sigma_max", [0.1, 80, 200, 1e6])
def test_rcm_first_time_is_the_trigonometric_one(sigma_max: float) -> None:
    angle = math.atan(sigma_max)
    expected = math.sin(angle) / (math.cos(angle) + math.sin(angle))
    assert rcm_times(4, sigma_max)[0].item() == pytest.approx(expected, abs=1e-12, rel=0)


@pytest.mark.parametrize("num_steps", [0, 5, -1, 50])
def test_rcm_refuses_other_step_counts(num_steps: int) -> None:
    with pytest.raises(UsageError, match=rf"1 to 4 steps, not {num_steps}\.") as caught:
        rcm_times(num_steps, 80)
    assert caught.value.fix.startswith(f"Use {min(max(num_steps, 1), 4)} steps")


@pytest.mark.parametrize("sigma_max", [0, -80, math.inf, math.nan])
def test_rcm_refuses_impossible_noise(sigma_max: float) -> None:
    with pytest.raises(UsageError, match="sigma_max"):
        rcm_times(4, sigma_max)


def test_model_timestep_rounds_to_bf16_and_keeps_the_shape() -> None:
    told = model_timestep(torch.tensor([[0.9998], [0.97805]]))
    assert told.dtype == torch.bfloat16 and told.tolist() == [[1000], [980]]
    assert model_timestep(0.0).item() == 0 and model_timestep(1.0).item() == 1000


def exact_sigmas(steps: int, shift: float, start: Fraction) -> list[float]:
    """σ in rational arithmetic, rounded once to fp32."""
    s = Fraction(shift)
    grid = [start * (steps - i) / steps for i in range(steps + 1)]
    return [float(s * u / (1 + (s - 1) * u)) for u in grid]


@pytest.mark.parametrize("convention", ["wan", "rcm"])
@pytest.mark.parametrize(
    ("steps", "shift"),
    [(1, 5.0), (2, 1.0), (7, 8.0), (40, 5.0), (50, 2.0), (50, 5.0), (50, 8.0), (100, 3.0)],
)
def test_flow_sigmas_to_one_ulp(steps: int, shift: float, convention: str) -> None:
    s, q = Fraction(shift), Fraction(5000, 5001)
    start = q / (s - (s - 1) * q) if convention == "rcm" else Fraction(999, 1000)
    expected = torch.tensor(exact_sigmas(steps, shift, start), dtype=torch.float32)
    sigmas = flow_sigmas(steps, shift, convention)
    assert sigmas.dtype == torch.float32 and sigmas.shape == (steps + 1,) and sigmas[-1] == 0
    ulp = torch.nextafter(expected, torch.full_like(expected, 2.0)) - expected
    assert ((sigmas - expected).abs() <= ulp).all()
    assert (sigmas.diff() < 0).all()


def test_rcm_convention_starts_at_5000_of_5001_for_every_shift() -> None:
    for shift in (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0):
        assert flow_sigmas(10, shift, "rcm")[0].item() == pytest.approx(5000 / 5001, abs=6e-8)


def test_another_first_noise_level() -> None:
    for shift in (1.0, 3.0):
        sigmas = flow_sigmas(10, shift, "rcm", 80.0)
        assert sigmas[0].item() == pytest.approx(80 / 81, abs=6e-8)
        told = flow_timesteps(10, shift, "rcm", 80.0)
        assert torch.equal(told, model_timestep(sigmas[:-1]))
    for wrong in (0.0, -1.0, float("inf")):
        with pytest.raises(UsageError) as caught:
            flow_sigmas(10, 3.0, "rcm", wrong)
        assert caught.value.code == "sampling-sigma-max"


def test_wan_timesteps_are_truncated() -> None:
    told = flow_timesteps(50, 5.0, "wan")
    sigmas = flow_sigmas(50, 5.0, "wan")[:-1].double() * 1000
    assert told.dtype == torch.int64 and told[0] == 999
    assert ((sigmas - told >= -1e-4) & (sigmas - told < 1)).all()
    assert (sigmas - told).max() > 0.9  # rounding would stay within a half
    # Unshifted, 999·2/3 is a whole number; the fp32 start keeps it from falling below.
    assert flow_timesteps(3, 1.0, "wan").tolist() == [999, 666, 333]


def test_rcm_timesteps_are_bf16() -> None:
    told = flow_timesteps(50, 5.0, "rcm")
    assert told.dtype == torch.bfloat16 and told[0].item() == 1000
    assert torch.equal(told, (flow_sigmas(50, 5.0, "rcm")[:-1].double() * 1000).bfloat16())


def test_flow_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="at least 1 step, not 0"):
        flow_sigmas(0, 5.0)
    for shift in (0.0, -1.0, math.nan, math.inf, 1e6):
        with pytest.raises(UsageError, match="shift"):
            flow_sigmas(10, shift)
    with pytest.raises(UsageError, match="'euler'"):
        flow_timesteps(10, 5.0, "euler")  # type: ignore[arg-type]


def test_an_unusual_default_dtype_changes_nothing() -> None:
    expected = rcm_times(4, 80), flow_sigmas(10, 5.0), model_timestep(0.9339)
    torch.set_default_dtype(torch.bfloat16)
    try:
        actual = rcm_times(4, 80), flow_sigmas(10, 5.0), model_timestep(0.9339)
    finally:
        torch.set_default_dtype(torch.float32)
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == wanted.dtype and torch.equal(got, wanted)
