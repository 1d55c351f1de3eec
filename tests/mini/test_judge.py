"""The judge on ground truth, on nothing, and on the wrong prompt."""

from collections import Counter

import numpy as np
import pytest
import torch

from turbodiffusion.errors import UsageError
from turbodiffusion.mini import world
from turbodiffusion.mini.attributes import BACKGROUNDS, MOTIONS, Expected, ExpectedObject
from turbodiffusion.mini.judge import ObjectReading, Reading, judge, score
from turbodiffusion.mini.metrics.shares import interval

ATTRIBUTES = ("background", "colour", "shape", "motion", "count")


def judge_rendered(n, frames, size, two_objects, seed, noise=0.0):
    """Number of right clips per attribute, and of right and all objects per motion."""
    scenes = world.sample_scenes(n, seed, split="all", two_objects=two_objects)
    generator = torch.Generator().manual_seed(seed)
    right: Counter = Counter()
    moved: dict[str, list[bool]] = {name: [] for name in MOTIONS}
    for first in range(0, n, 4):
        videos = world.render(scenes[first : first + 4], frames, size)
        if noise:
            videos += noise * torch.randn(videos.shape, generator=generator)
        for i, video in enumerate(videos.clamp_(0, 1)):
            want = world.expected(scenes, first + i)
            marks = score(judge(video), want)
            right.update(name for name in ATTRIBUTES if marks[name])
            for thing in want.objects:
                moved[thing.motion].append(bool(marks["motion"]))
    return right, moved


@pytest.mark.parametrize(
    ("n", "frames", "size", "two_objects", "noise"),
    [
        pytest.param(400, 17, 64, 0.0, 0.0, id="micro-one"),
        pytest.param(300, 17, 64, 1.0, 0.0, id="micro-two"),
        pytest.param(160, 33, 128, 0.0, 0.0, id="mini-one"),
        pytest.param(160, 33, 128, 1.0, 0.0, id="mini-two"),
        pytest.param(160, 17, 64, 0.5, 0.05, id="micro-noise"),
        pytest.param(40, 33, 128, 0.5, 0.05, id="mini-noise"),
        pytest.param(40, 13, 80, 0.5, 0.0, id="other-size"),
    ],
)
def test_reads_rendered_clips(n, frames, size, two_objects, noise):
    right, moved = judge_rendered(n, frames, size, two_objects, 1000 + n + size, noise)
    assert {name: right[name] / n for name in ATTRIBUTES if right[name] < 0.98 * n} == {}
    for name, marks in moved.items():
        assert sum(marks) >= 0.95 * len(marks), name


def test_blur_costs_shape_only():
    """Half the resolution leaves everything readable; the world is not judged by sharp pixels."""
    scenes = world.sample_scenes(60, 3, split="all", two_objects=0.5)
    small = world.render(scenes, 17, 64).unflatten(2, (32, 2)).unflatten(4, (32, 2)).mean((3, 5))
    blurred = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    marks = [score(judge(video), world.expected(scenes, i)) for i, video in enumerate(blurred)]
    for name in ("background", "colour", "motion", "count"):
        assert sum(bool(mark[name]) for mark in marks) >= 59
    assert sum(bool(mark["shape"]) for mark in marks) >= 50


def test_number_format_does_not_matter():
    scenes = world.sample_scenes(6, 4, two_objects=0.5)
    for video in world.render(scenes, 17, 64):
        reading = judge(video)
        for other in (
            (video * 255).round().to(torch.uint8),
            (video * 255).round().to(torch.uint8).numpy(),
            video.numpy().astype(np.float64),
            video.half(),
        ):
            again = judge(other)
            assert again.background == reading.background
            for a, b in zip(again.objects, reading.objects, strict=True):
                assert (a.colour, a.shape, a.motion) == (b.colour, b.shape, b.motion)
                assert abs(a.overlap - b.overlap) < 0.02


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_empty_background_has_no_object(name):
    rows = world.background_rows(BACKGROUNDS.index(name), 64)
    video = rows[None, :, None].expand(17, 64, 64, 3)
    assert judge(video) == Reading(name, ())
    noisy = video + 0.05 * torch.randn(video.shape, generator=torch.Generator().manual_seed(1))
    assert judge(noisy) == Reading(name, ())


@pytest.mark.parametrize("frames", [1, 17])
def test_noise_shows_nothing(frames):
    video = torch.rand(frames, 64, 64, 3, generator=torch.Generator().manual_seed(2))
    assert judge(video) == Reading(None, ())


def test_nan_and_single_frames_are_read_without_failing():
    assert judge(torch.full((5, 32, 32, 3), torch.nan)) == Reading(None, ())
    scenes = world.sample_scenes(1, 5, two_objects=0.0)
    reading = judge(world.render(scenes, 1, 64)[0])
    assert reading.objects[0].colour == world.expected(scenes, 0).objects[0].colour
    assert reading.objects[0].motion == "staying still"


def test_object_seen_too_briefly_is_missing():
    scenes = world.sample_scenes(1, 6, two_objects=0.0)
    video = world.render(scenes, 17, 64)[0]
    rows = world.background_rows(int(scenes.background[0]), 64)
    video[9:] = rows[:, None]
    assert judge(video).objects == ()


def test_wide_frames_are_read():
    scenes = world.sample_scenes(12, 7, two_objects=0.0)
    videos = world.render(scenes, 17, 64)
    for i, video in enumerate(videos):
        side = video[:, :, :1].expand(-1, -1, 24, -1)
        assert score(judge(torch.cat([side, video, side], dim=2)), world.expected(scenes, i))[
            "joint"
        ]


@pytest.mark.parametrize("shape", [(17, 64, 64), (17, 3, 64, 64), (0, 64, 64, 3)])
def test_other_layouts_are_refused(shape):
    with pytest.raises(UsageError, match="cannot be judged"):
        judge(torch.zeros(shape))


def test_wrong_prompts_score_near_chance():
    n = 200
    scenes = world.sample_scenes(n, 8, split="all", two_objects=0.0)
    readings = [judge(video) for first in range(0, n, 20)
                for video in world.render(scenes[first : first + 20], 17, 64)]  # fmt: skip
    marks = [score(reading, world.expected(scenes, (i + 1) % n)) for i, reading in
             enumerate(readings)]  # fmt: skip
    chance = {"background": 1 / 6, "colour": 1 / 8, "shape": 1 / 6, "motion": 1 / 9}
    for name, share in chance.items():
        low, high = interval(sum(bool(mark[name]) for mark in marks), n)
        assert low - 0.03 < share < high + 0.03, name
    assert sum(bool(mark["joint"]) for mark in marks) <= 2


RED = ObjectReading("red", "circle", "growing", 0.9)
BLUE = ObjectReading("blue", "star", "bouncing", 0.9)


def wanted(*things, background=None):
    return Expected(background, tuple(ExpectedObject(*thing) for thing in things))


@pytest.mark.parametrize(
    ("objects", "want", "marks"),
    [
        pytest.param(
            (RED, BLUE),
            wanted(("blue", "star", "bouncing"), ("red", "circle", "growing"), background="black"),
            (True, True, True, True, True, True), id="order-free",
        ),
        pytest.param(
            (RED,), wanted(("red", None, None)), (None, True, None, None, True, True), id="open"
        ),
        pytest.param(
            (RED,), wanted(("red", "square", "growing"), background="navy"),
            (False, True, False, True, True, False), id="wrong-shape",
        ),
        pytest.param(
            (), wanted(("red", "square", None)), (None, False, False, None, False, False),
            id="missing",
        ),
        pytest.param(
            (RED,), wanted(("red", "circle", None), ("blue", "star", "growing")),
            (None, False, False, False, False, False), id="one-missing",
        ),
        pytest.param(
            (BLUE, RED), wanted(("red", "circle", "growing")),
            (None, True, True, True, False, False), id="one-too-many",
        ),
        pytest.param((RED,), wanted(background="black"), (True, None, None, None, None, True),
                     id="background-only"),
    ],
)  # fmt: skip
def test_score(objects, want, marks):
    got = score(Reading("black", objects), want)
    assert tuple(got[name] for name in (*ATTRIBUTES, "joint")) == marks


def test_interval_is_wilsons():
    assert interval(90, 100) == pytest.approx((0.82563, 0.94477), abs=1e-4)
    assert interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)
    assert interval(10, 10) == pytest.approx((0.72247, 1.0), abs=1e-4)
    assert interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 of 2"):
        interval(3, 2)
