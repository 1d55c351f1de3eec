"""Seeds mean the same everywhere, alone or in a batch."""

from __future__ import annotations

import pytest
import torch

from turbodiffusion.errors import UsageError
from turbodiffusion.sampling.noise import draw_noise, make_generators

SHAPE = (3, 4, 2, 6, 5)


def test_the_stream_of_a_seed_is_fixed() -> None:
    noise = draw_noise((1, 16, 1, 1, 1), 0).flatten()
    assert noise.dtype == torch.float32 and noise.device.type == "cpu"
    # First values of PyTorch's CPU stream for seed 0 (Mersenne Twister, Box–Muller of 16).
    expected = [-1.1258398, -1.1523602, -0.25057858, -0.4338788]
    assert noise[:4].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_global_stream_is_neither_used_nor_moved() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = draw_noise(SHAPE, 7)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, draw_noise(SHAPE, 7))


def test_a_video_does_not_depend_on_how_many_there_are() -> None:
    batch = draw_noise(SHAPE, 42)
    for index in range(SHAPE[0]):
        assert torch.equal(batch[index], draw_noise((1, *SHAPE[1:]), 42 + index)[0])
    assert not torch.equal(batch[0], batch[1])


def test_many_videos_are_drawn_as_few_are() -> None:
    """In threads, whose order must not matter; generators advance as one after the other."""
    many, few = make_generators(5, 40), make_generators(5, 40)
    for _ in range(2):
        together = draw_noise((40, 2, 3, 4), many)
        apart = torch.cat([draw_noise((1, 2, 3, 4), [one]) for one in few])
        assert torch.equal(together, apart)


def test_one_video_is_the_plain_stream_of_its_seed() -> None:
    plain = torch.randn((1, *SHAPE[1:]), generator=torch.Generator().manual_seed(5))
    assert torch.equal(draw_noise((1, *SHAPE[1:]), 5), plain)


def test_one_generator_draws_the_batch_at_once_and_advances() -> None:
    source = torch.Generator().manual_seed(5)
    first, second = draw_noise(SHAPE, source), draw_noise(SHAPE, source)
    plain = torch.Generator().manual_seed(5)
    assert torch.equal(first, torch.randn(SHAPE, generator=plain))
    assert torch.equal(second, torch.randn(SHAPE, generator=plain))


def test_generators_advance_one_by_one() -> None:
    sources = make_generators(42, 3)
    draw_noise(SHAPE, sources)
    second = draw_noise(SHAPE, sources)
    alone = make_generators(44, 1)
    draw_noise((1, *SHAPE[1:]), alone)
    assert torch.equal(second[2:], draw_noise((1, *SHAPE[1:]), alone))


def test_numbers_are_standard_normal() -> None:
    noise = draw_noise((2, 100_000), 3)
    assert noise.mean(1).abs().max() < 0.02 and (noise.std(1) - 1).abs().max() < 0.02


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(UsageError, match=str(seed)):
        make_generators(seed, 1)


def test_the_largest_seed_works() -> None:
    assert len(make_generators(2**63 - 1 - 2, 2)) == 2


def test_a_generator_a_video_is_needed() -> None:
    with pytest.raises(UsageError, match="2 generators were given for 3 videos"):
        draw_noise(SHAPE, make_generators(0, 2))


def test_a_generator_of_another_device_is_refused() -> None:
    class Elsewhere:
        device = torch.device("cuda:0")

    with pytest.raises(UsageError, match="cuda:0"):
        draw_noise((1, 2), [Elsewhere()])  # type: ignore[list-item]
