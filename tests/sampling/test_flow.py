"""Euler, UniPC, guidance and expert choice of the unaccelerated sampler."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from turbodiffusion.errors import Stopped, UsageError
from turbodiffusion.sampling.flow import sample_flow
from turbodiffusion.sampling.schedule import flow_sigmas, flow_timesteps

SHAPE = (2, 3, 2, 4, 6)
EXACT = {"model_dtype": torch.float64}  # keeps the test's velocity free of bf16


def noise(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def curved(x: Tensor, timestep_B1: Tensor, expert: str = "") -> Tensor:
    """A smooth velocity without symmetry, in x's precision."""
    level = timestep_B1.to(x.dtype).view(-1, 1, 1, 1, 1) / 1000
    return (1.5 * x.roll(1, -1) - 0.3 * x + level).sin()


def run(velocity=curved, start: Tensor | None = None, **settings) -> Tensor:
    settings = {"steps": 10, "shift": 5.0} | EXACT | settings
    return sample_flow(velocity, None, noise() if start is None else start, **settings)


@pytest.mark.parametrize("convention", ["wan", "rcm"])
def test_euler_is_the_definition(convention: str) -> None:
    sigmas = flow_sigmas(7, 3.0, convention)
    dtype = torch.float32 if convention == "wan" else torch.float64
    x = noise().to(dtype)
    for i, told in enumerate(flow_timesteps(7, 3.0, convention)):
        v = curved(x.bfloat16(), told.expand(2, 1)).to(dtype)
        x = x + v * (sigmas[i + 1].to(dtype) - sigmas[i].to(dtype))
    actual = run(solver="euler", steps=7, shift=3.0, convention=convention,
                 model_dtype=torch.bfloat16)  # fmt: skip
    torch.testing.assert_close(actual, x.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "shift"), [(1, 5.0), (2, 5.0), (3, 8.0), (10, 5.0), (50, 3.0), (7, 8.0)]
)
def test_unipc_agrees_with_diffusers(steps: int, shift: float) -> None:
    from diffusers import UniPCMultistepScheduler

    stock = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift,
        solver_order=2, solver_type="bh2", predict_x0=True, lower_order_final=True,
        final_sigmas_type="zero",
    )  # fmt: skip
    stock.set_timesteps(steps)
    # Its own grid starts at 1 and not at 0.999; the solver is what is compared.
    stock.sigmas, stock.timesteps = flow_sigmas(steps, shift), flow_timesteps(steps, shift)
    x = noise().double()
    for t in stock.timesteps:
        x = stock.step(curved(x, t.expand(2, 1)), t, x, return_dict=False)[0]
    # Only the rounding of the reference's coefficients and of our fp32 state is between them.
    torch.testing.assert_close(run(steps=steps, shift=shift), x.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", ["unipc", "euler"])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_a_constant_velocity_is_integrated_exactly(solver: str, steps: int) -> None:
    v = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4)).double()
    start = noise()
    for convention in ("wan", "rcm"):
        out = run(lambda x, t, e: v, start, solver=solver, steps=steps, convention=convention)
        first = flow_sigmas(steps, 5.0, convention)[0].item()
        expected = (start.double() - first * v).float()
        torch.testing.assert_close(out, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("solver", ["unipc", "euler"])
def test_a_perfect_network_gives_the_clean_latents(solver: str) -> None:
    target = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4)).double()
    sigmas = iter(flow_sigmas(12, 5.0).tolist())
    out = run(lambda x, t, e: (x.double() - target) / next(sigmas), solver=solver, steps=12)
    torch.testing.assert_close(out, target.float(), rtol=1e-5, atol=1e-5)


def test_unipc_converges_faster_than_euler() -> None:
    def smooth(x: Tensor, timestep_B1: Tensor, expert: str) -> Tensor:
        return (x - x.square().mean() * 0.2).tanh()

    def end(solver: str, steps: int) -> Tensor:
        settings = dict(shift=3.0, convention="rcm", **EXACT)
        return run(smooth, solver=solver, steps=steps, **settings)

    truth = end("euler", 4000)
    errors = {
        (solver, steps): (end(solver, steps) - truth).norm().item()
        for solver in ("euler", "unipc")
        for steps in (10, 20, 40)
    }
    assert errors["unipc", 20] < errors["euler", 20] / 5
    # Order: halving the step divides Euler's error by 2 and that of UniPC by 4 or more.
    assert 1.7 < errors["euler", 20] / errors["euler", 40] < 2.4
    assert errors["unipc", 10] / errors["unipc", 20] > 3.5


@pytest.mark.parametrize("convention", ["wan", "rcm"])
def test_what_the_network_sees(convention: str) -> None:
    seen: list[tuple[Tensor, Tensor, str]] = []

    def velocity(x: Tensor, timestep_B1: Tensor, expert: str) -> Tensor:
        seen.append((x, timestep_B1, expert))
        return x.float()

    out = sample_flow(velocity, None, noise(), steps=5, shift=5.0, convention=convention)
    assert out.dtype == torch.float32
    assert {x.dtype for x, _, _ in seen} == {torch.bfloat16}
    assert {expert for _, _, expert in seen} == {""}
    expected = flow_timesteps(5, 5.0, convention).tolist()
    assert [told.tolist() for _, told, _ in seen] == [[[t], [t]] for t in expected]
    assert torch.equal(seen[0][0], noise().bfloat16())  # the start is not scaled
    wanted = torch.float32 if convention == "wan" else torch.bfloat16
    assert seen[0][1].dtype == wanted


def test_guidance_exaggerates_the_difference() -> None:
    def uncond(x: Tensor, t: Tensor, e: str) -> Tensor:
        return x.cos()

    def by_hand(x: Tensor, t: Tensor, e: str) -> Tensor:
        return uncond(x, t, e) + 4.0 * (curved(x, t, e) - uncond(x, t, e))

    settings = dict(steps=6, shift=5.0, **EXACT)
    guided = sample_flow(curved, uncond, noise(), guidance=4.0, **settings)
    assert torch.equal(guided, run(by_hand, steps=6))
    pair = sample_flow(
        None, None, noise(), guidance=4.0, **settings,
        velocity_pair=lambda x, t, e: (curved(x, t, e), uncond(x, t, e)),
    )  # fmt: skip
    assert torch.equal(pair, guided)


def test_guidance_one_calls_the_negative_prompt_never() -> None:
    def never(x: Tensor, t: Tensor, e: str) -> Tensor:
        raise AssertionError("called")

    out = sample_flow(curved, never, noise(), steps=4, shift=5.0, guidance=1.0, **EXACT)
    assert torch.equal(out, run(steps=4))


@pytest.mark.parametrize(
    ("convention", "shift", "boundary"), [("wan", 5.0, 0.9), ("wan", 3.0, 0.9), ("rcm", 5.0, 0.9)]
)
def test_experts_and_their_guidance(convention: str, shift: float, boundary: float) -> None:
    calls: list[tuple[str, str]] = []

    def branch(name: str):
        def velocity(x: Tensor, t: Tensor, expert: str) -> Tensor:
            calls.append((name, expert))
            return x * 0

        return velocity

    sample_flow(
        branch("cond"), branch("uncond"), noise(), steps=40, shift=shift, boundary=boundary,
        guidance={"high": 3.0, "low": 1.0}, convention=convention,
    )  # fmt: skip
    high = sum(t >= boundary for t in flow_sigmas(40, shift, convention).tolist())
    assert 0 < high < 40
    expected = [("cond", "high"), ("uncond", "high")] * high + [("cond", "low")] * (40 - high)
    assert calls == expected


def test_the_boundary_itself_belongs_to_high_noise() -> None:
    # Unshifted 1-step grids start at 999; the second of two steps is told 499.
    for boundary, expected in ((0.499, ["high", "high"]), (0.4991, ["high", "low"])):
        experts: list[str] = []
        run(
            lambda x, t, e, seen=experts: seen.append(e) or x * 0,
            steps=2, shift=1.0, boundary=boundary,
        )  # fmt: skip
        assert experts == expected


def test_steps_are_reported_and_false_stops() -> None:
    reports = []
    out = run(steps=3, on_step=lambda *report: reports.append(report))
    sigmas = flow_sigmas(3, 5.0).tolist()
    assert [report[:3] for report in reports] == [(i + 1, 3, sigmas[i]) for i in range(3)]
    estimate = reports[0][3]()
    told = flow_timesteps(3, 5.0)[0].expand(2, 1)
    torch.testing.assert_close(estimate, noise() - sigmas[0] * curved(noise(), told))
    assert torch.equal(reports[-1][3](), out)  # UniPC ends on the last estimate
    with pytest.raises(Stopped, match="step 2 of 5"):
        run(steps=5, on_step=lambda done, *_: done != 2)


def test_settings_are_checked() -> None:
    settings = {"steps": 4, "shift": 5.0}
    with pytest.raises(UsageError, match="'ddim'"):
        run(solver="ddim")
    with pytest.raises(UsageError, match=r"Guidance 5\.0"):
        sample_flow(curved, None, noise(), guidance=5.0, **settings)
    with pytest.raises(UsageError, match="'low'"):
        sample_flow(curved, curved, noise(), guidance={"high": 3.5}, boundary=0.9, **settings)
    with pytest.raises(UsageError, match="No velocity"):
        sample_flow(None, None, noise(), **settings)
    with pytest.raises(UsageError, match="at least 1 step"):
        run(steps=0)
