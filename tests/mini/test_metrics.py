"""The measures against cases whose answer is known."""

import math

import pytest
import torch

from turbodiffusion.mini import world
from turbodiffusion.mini.judge import inspect_clip
from turbodiffusion.mini.measure import Track
from turbodiffusion.mini.metrics import fidelity, latents
from turbodiffusion.mini.metrics.diversity import diversity, real_variances
from turbodiffusion.mini.metrics.shares import Paired, interval
from turbodiffusion.mini.observe import observe


def test_intervals():
    """Against values of the formula as Wilson's paper gives it, computed apart."""
    low, high = interval(461, 512)
    assert (low, high) == (pytest.approx(0.8714, abs=1e-4), pytest.approx(0.9234, abs=1e-4))
    assert interval(0, 0) == (0.0, 1.0)
    assert interval(0, 10)[0] == 0.0 and interval(10, 10)[1] == pytest.approx(1.0)
    assert interval(0, 10)[1] == pytest.approx(0.2775, abs=1e-4)
    assert interval(3, 10) == pytest.approx(tuple(1 - v for v in reversed(interval(7, 10))))
    with pytest.raises(ValueError):
        interval(4, 3)


def test_paired_interval_is_newcombes():
    """The first is a worked example of his paper: 36, 12, 2, 0 gives 0.0569 to 0.3404."""
    counts = Paired(36, 12, 2, 0)
    assert counts.total == 50 and counts.difference == pytest.approx(0.2)
    assert counts.interval() == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert Paired(0, 0, 0, 0).interval() == (-1.0, 1.0)
    low, high = Paired(900, 0, 0, 100).interval()
    assert -0.006 < low < 0 < high < 0.006, "rows that agree everywhere are equal, nearly surely"
    apart = Paired(810, 90, 90, 10).interval()
    assert apart[0] < low and apart[1] > high, "rows that err apart are known less well"


def test_a_pair_is_turned_around():
    there, back = Paired(70, 9, 4, 17), Paired(70, 4, 9, 17)
    assert there.interval() == pytest.approx(tuple(-v for v in reversed(back.interval())))
    assert Paired.of([(True, True), (True, False), (True, False), (False, True)]) == Paired(
        1, 2, 1, 0
    )


def clips(n=6, frames=17, size=64, objects=0.0, seed=4):
    scenes = world.sample_scenes(n, seed, split="all", two_objects=objects)
    return scenes, world.render(scenes, frames, size)


def blurred(video, times=2):
    """Each pixel the mean of its neighbours, ``times`` times, in space only."""
    flat = video.permute(0, 1, 4, 2, 3).flatten(0, 1)
    for _ in range(times):
        flat = torch.nn.functional.avg_pool2d(flat, 3, 1, 1, count_include_pad=False)
    return flat.unflatten(0, video.shape[:2]).permute(0, 1, 3, 4, 2)


@pytest.mark.parametrize("size", [64, 128])
def test_rendered_clips_are_sharp_and_still(size):
    scenes, video = clips(12, 17, size)
    found = [observe(clip, world.expected(scenes, i)) for i, clip in enumerate(video)]
    assert all(one.scores["joint"] for one in found)
    assert max(one.flicker for one in found) < 1e-3
    things = [one.things[0] for one in found]
    assert sum(t.sharpness for t in things) / 12 == pytest.approx(1, abs=0.06)
    assert sum(t.shape_drift for t in things) / 12 < 0.02
    for thing in things:  # the pixels of a small star or a thin cross leave some room
        assert thing.sharpness == pytest.approx(1, abs=0.25)
        assert thing.overlap > 0.88 and thing.shape_drift < 0.08
        assert thing.colour_drift < 1


def test_blur_lowers_sharpness_and_little_else():
    scenes, video = clips()
    for i, (clip, soft) in enumerate(zip(video, blurred(video), strict=True)):
        sharp, dull = (observe(x, world.expected(scenes, i)) for x in (clip, soft))
        assert dull.scores["motion"] and dull.scores["colour"]
        assert dull.things[0].sharpness < 0.6 * sharp.things[0].sharpness
        assert dull.things[0].jerk == pytest.approx(sharp.things[0].jerk, abs=6e-3)


def test_flicker_is_that_of_the_background():
    scenes, video = clips(1)
    step = torch.arange(17) % 2 * 4 / 255
    restless = (video[0] + step[:, None, None, None]).clamp(0, 1)
    assert observe(restless, world.expected(scenes, 0)).flicker == pytest.approx(4, abs=0.05)


def test_colour_drift_is_the_objects():
    """A colour that leaves its mean by ±8 levels on every channel has drift 8."""
    _, video = clips(1)
    seen = inspect_clip(video[0])
    sign = (torch.arange(17) % 2 * 2 - 1).float() * 8 / 255
    shaken = seen.video + sign[None, :, None, None]
    assert fidelity.colour_drift(shaken[:, :16], _first_frames(seen.layers[0], 16)) == (
        pytest.approx(8, abs=0.5)
    )


def _first_frames(layer, n):
    return type(layer)(layer.colour, layer.cover[:n])


def test_jerk_of_known_paths():
    t = torch.arange(9.0)
    zero = torch.zeros(9)
    frame = torch.arange(9)
    assert fidelity.jerk(Track(0.1 * t, 0.2 * t, zero, frame)) == pytest.approx(0, abs=1e-6)
    assert fidelity.jerk(Track(0.5 * t * t, zero, zero, frame)) == pytest.approx(1)
    gap = torch.tensor([0, 1, 3, 4, 6, 7, 9, 10, 12])
    assert math.isnan(fidelity.jerk(Track(t * t, zero, zero, gap))), "frames are missing"


def test_spread_reaches_as_far_as_it_says():
    mask = torch.zeros(1, 9, 9)
    mask[0, 4, 4] = 1
    wide = fidelity.spread(mask, 2)
    assert wide.sum() == 25 and wide[0, 2, 2] == 1 and wide[0, 1, 4] == 0


def test_frechet_of_known_normals():
    """Two Gaussians: squared distance of means, and of the roots of commuting covariances."""
    g = torch.Generator().manual_seed(1)
    a = torch.randn(20000, 3, generator=g)
    scale, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, 1.0, 0.0])
    b = torch.randn(20000, 3, generator=g) * scale + shift
    wanted = 1 + ((1 - scale) ** 2).sum()
    assert latents.frechet(a, b) == pytest.approx(float(wanted), rel=0.03)
    assert latents.frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert latents.frechet(a, b) == pytest.approx(latents.frechet(b, a), rel=1e-6)


def test_frechet_of_fewer_clips_than_numbers():
    """A covariance without full rank has no inverse, and needs none."""
    g = torch.Generator().manual_seed(2)
    a, b = torch.randn(4, 30, generator=g), torch.randn(5, 30, generator=g)
    assert math.isfinite(latents.frechet(a, b)) and latents.frechet(a, a) < 1e-5


def test_descriptions_are_means_and_deviations():
    latent = torch.randn(2, 8, 9, 32, 32)
    numbers = latents.describe(latent)
    assert numbers.shape == (2, 144), "what the recipe counts for mini"
    assert numbers[1, 9 * 3 + 5] == pytest.approx(float(latent[1, 3, 5].mean()), abs=1e-6)
    assert numbers[1, 72 + 9 * 3 + 5] == pytest.approx(float(latent[1, 3, 5].std()), abs=1e-6)


@pytest.mark.parametrize(("cycles", "high"), [(3, 0.0), (12, 1.0)])
def test_fine_energy_of_a_wave(cycles, high):
    """Of 32 cells, 3 waves are a low frequency and 12 a high one; a constant is neither."""
    wave = torch.sin(2 * math.pi * cycles * torch.arange(32) / 32).expand(1, 1, 1, 32, 32)
    fine, total = latents.fine_energy(7 + wave)[0]
    assert float(fine / total) == pytest.approx(high, abs=1e-4)
    assert float(total) == pytest.approx(32 * 32 / 2, rel=1e-4), "Parseval"


def test_a_set_grows_by_batches():
    g = torch.Generator().manual_seed(3)
    whole, parts, other = latents.LatentSet(), latents.LatentSet(), latents.LatentSet()
    x, y = torch.randn(2, 10, 2, 3, 8, 8, generator=g)
    whole.add(x)
    parts.add(x[:4])
    parts.add(x[4:])
    other.add(y)
    assert len(parts) == 10 and parts.distance(other) == whole.distance(other)
    assert parts.fine_share() == pytest.approx(whole.fine_share())
    assert latents.LatentSet().distance(whole) is None


def test_the_worlds_own_starts_are_as_diverse_as_the_world():
    scenes = world.sample_scenes(1600, 77, split="seen", two_objects=0.0)
    x, y, _ = world.paths(scenes, torch.zeros(1))
    starts = []
    for i, name in enumerate(world.MOTIONS):
        mine = (scenes.motion[:, 0] == i).nonzero()[:, 0]
        points = [(float(x[j, 0, 0]), float(y[j, 0, 0])) for j in mine]
        starts += [(name, points[k : k + 8]) for k in range(0, len(points) - 8, 8)]
    assert diversity(starts) == pytest.approx(1, abs=0.05)
    assert set(real_variances()) == set(world.MOTIONS)
    half = [(name, [(a / 2, b / 2) for a, b in points]) for name, points in starts]
    assert diversity(half) == pytest.approx(diversity(starts) / 2)
    assert diversity([("bouncing", [(0.1, 0.2)])]) is None
    assert diversity([("bouncing", [(0.1, 0.2)] * 8)]) == 0
