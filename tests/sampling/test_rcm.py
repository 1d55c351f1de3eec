"""The few-step loop against its definition, written out again here."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from turbodiffusion.errors import Stopped, UsageError
from turbodiffusion.sampling.noise import draw_noise
from turbodiffusion.sampling.rcm import sample_rcm
from turbodiffusion.sampling.schedule import rcm_times

SHAPE = (2, 3, 2, 4, 6)


class Recorder:
    """A velocity that depends on everything it is given and remembers it."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor, str]] = []

    def __call__(self, x: Tensor, timestep_B1: Tensor, expert: str) -> Tensor:
        self.seen.append((x.clone(), timestep_B1.clone(), expert))
        scale = {"": 1.0, "high": 0.5, "low": 2.0}[expert]
        level = timestep_B1.float().view(-1, 1, 1, 1, 1) / 1000
        return (x.float().roll(1, -1) * scale + level).sin()

    @property
    def experts(self) -> list[str]:
        return [expert for _, _, expert in self.seen]


def start(seed: int = 0) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return draw_noise(SHAPE, generator), generator


def by_hand(velocity: Recorder, noise: Tensor, generator: torch.Generator, steps: int) -> Tensor:
    """SDE steps with 0-d fp64 tensors, so that type promotion does the roundings."""
    times = rcm_times(steps, 80.0)
    x = noise.double() * times[0]
    for t, t_next in itertools.pairwise(times):
        told = (t.float().double() * 1000).bfloat16().expand(len(x), 1)
        v = velocity(x.bfloat16(), told, "").double()
        noise = torch.randn(x.shape, dtype=torch.float32, generator=generator)
        renoise = t_next * noise
        assert renoise.dtype == torch.float32
        x = (1 - t_next) * (x - t * v) + renoise
    return x.float()


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_sde_is_bit_equal_to_the_definition(steps: int) -> None:
    noise, generator = start()
    expected = by_hand(Recorder(), noise, generator, steps)
    noise, generator = start()
    actual = sample_rcm(Recorder(), noise, num_steps=steps, sigma_max=80.0, generator=generator)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


def test_the_network_sees_bf16_and_rounded_timesteps() -> None:
    velocity = Recorder()
    noise, generator = start()
    sample_rcm(velocity, noise, num_steps=4, sigma_max=200, generator=generator)
    assert {x.dtype for x, _, _ in velocity.seen} == {torch.bfloat16}
    assert [told.tolist() for _, told, _ in velocity.seen] == [
        [[value], [value]] for value in (996, 932, 852, 608)
    ]
    assert velocity.seen[0][1].dtype == torch.bfloat16
    first = (noise.double() * (200 / 201)).bfloat16()
    assert torch.equal(velocity.seen[0][0], first)
    velocity = Recorder()
    sample_rcm(velocity, noise, num_steps=1, sigma_max=200, ode=True, model_dtype=torch.float32)
    assert velocity.seen[0][0].dtype == torch.float32


@pytest.mark.parametrize("steps", [1, 4])
def test_sde_draws_once_a_step_the_last_included(steps: int) -> None:
    noise, generator = start(3)
    sample_rcm(Recorder(), noise, num_steps=steps, sigma_max=80, generator=generator)
    _, expected = start(3)
    for _ in range(steps):
        torch.randn(SHAPE, generator=expected)
    assert torch.equal(torch.randn(5, generator=generator), torch.randn(5, generator=expected))


def test_ode_draws_nothing_and_follows_the_velocity() -> None:
    noise, generator = start(3)
    before = generator.get_state()
    args = {"num_steps": 4, "sigma_max": 80, "ode": True}
    actual = sample_rcm(Recorder(), noise, generator=generator, **args)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(sample_rcm(Recorder(), noise, **args), actual)
    velocity, times = Recorder(), rcm_times(4, 80)
    x = noise.double() * times[0]
    for t, t_next in itertools.pairwise(times):
        told = (t.float().double() * 1000).bfloat16().expand(len(x), 1)
        x = x - (t - t_next) * velocity(x.bfloat16(), told, "").double()
    assert torch.equal(actual, x.float())


@pytest.mark.parametrize("ode", [False, True], ids=["sde", "ode"])
def test_a_perfect_network_gives_the_clean_latents(ode: bool) -> None:
    noise, generator = start()
    target = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9)).double()
    times = iter(rcm_times(4, 80).tolist())

    def perfect(x: Tensor, timestep_B1: Tensor, expert: str) -> Tensor:
        return (x - target) / next(times)

    out = sample_rcm(
        perfect, noise, num_steps=4, sigma_max=80, generator=generator, ode=ode,
        model_dtype=torch.float64,
    )  # fmt: skip
    torch.testing.assert_close(out, target.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "boundary", "expected"),
    [
        (4, 0.9, ["high", "high", "low", "low"]),
        (3, 0.9, ["high", "high", "low"]),
        (2, 0.9, ["high", "high"]),
        (1, 0.9, ["high"]),
        (4, 1.0, ["low"] * 4),
        (4, 0.0, ["high"] * 4),
        (4, None, [""] * 4),
    ],
)
def test_experts(steps: int, boundary: float | None, expected: list[str]) -> None:
    velocity = Recorder()
    noise, generator = start()
    sample_rcm(
        velocity, noise, num_steps=steps, sigma_max=200, boundary=boundary, generator=generator
    )
    assert velocity.experts == expected


def test_the_boundary_is_strict() -> None:
    second = rcm_times(4, 200)[1].item()
    for boundary, expected in ((second, "high"), (second + 1e-9, "low")):
        velocity = Recorder()
        noise, _ = start()
        sample_rcm(velocity, noise, num_steps=4, sigma_max=200, boundary=boundary, ode=True)
        assert velocity.experts[1] == expected


def test_the_low_expert_stays_once_chosen() -> None:
    # sigma_max 5 starts at t = 0.83, below the boundary; the middle times lie above it.
    velocity = Recorder()
    noise, generator = start()
    sample_rcm(velocity, noise, num_steps=3, sigma_max=5, boundary=0.85, generator=generator)
    assert velocity.experts == ["low", "low", "low"]


def test_each_video_of_a_batch_is_the_one_made_alone() -> None:
    from turbodiffusion.sampling.noise import make_generators

    def run(seed: int, count: int) -> Tensor:
        sources = make_generators(seed, count)
        noise = draw_noise((count, *SHAPE[1:]), sources)
        return sample_rcm(Recorder(), noise, num_steps=4, sigma_max=80, generator=sources)

    batch = run(10, 3)
    for index in range(3):
        assert torch.equal(batch[index], run(10 + index, 1)[0])


def test_steps_are_reported_with_the_clean_estimate() -> None:
    reports = []

    def on_step(done: int, total: int, t: float, estimate) -> None:
        reports.append((done, total, t, estimate()))

    velocity = Recorder()
    noise, generator = start()
    out = sample_rcm(
        velocity, noise, num_steps=3, sigma_max=80, generator=generator, on_step=on_step
    )
    times = rcm_times(3, 80).tolist()
    assert [(done, total, t) for done, total, t, _ in reports] == [
        (1, 3, times[0]), (2, 3, times[1]), (3, 3, times[2]),
    ]  # fmt: skip
    assert all(clean.dtype == torch.float32 for *_, clean in reports)
    v = Recorder()(*velocity.seen[0])
    first = (noise.double() * times[0] - times[0] * v.double()).float()
    assert torch.equal(reports[0][3], first)
    assert torch.equal(reports[-1][3], out)


def test_returning_false_stops_the_run() -> None:
    velocity = Recorder()
    noise, generator = start()
    with pytest.raises(Stopped, match="step 2 of 4") as caught:
        sample_rcm(
            velocity, noise, num_steps=4, sigma_max=80, generator=generator,
            on_step=lambda done, *_: done < 2,
        )  # fmt: skip
    assert len(velocity.seen) == 2 and caught.value.exit_code == 130


def test_no_graph_is_kept_and_the_noise_is_not_changed() -> None:
    noise, generator = start()
    kept = noise.clone()
    weight = torch.ones((), requires_grad=True)
    out = sample_rcm(
        lambda x, t, e: x.float() * weight, noise, num_steps=2, sigma_max=80, generator=generator
    )
    assert not out.requires_grad and torch.equal(noise, kept)


def test_sde_without_a_generator_is_refused() -> None:
    with pytest.raises(UsageError, match="no generator"):
        sample_rcm(Recorder(), start()[0], num_steps=4, sigma_max=80)
