"""The world: what is drawn stays inside its rules, and what is rendered is what was drawn."""

import math

import pytest
import torch

from turbodiffusion.errors import UsageError
from turbodiffusion.mini import shapes, world
from turbodiffusion.mini.attributes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES

U = torch.linspace(0, 1, 129)


def triples(scenes: world.Scenes) -> list[list[tuple[int, int, int]]]:
    return [
        [
            (int(scenes.colour[i, k]), int(scenes.shape[i, k]), int(scenes.motion[i, k]))
            for k in range(int(scenes.count[i]))
        ]
        for i in range(len(scenes))
    ]


def test_one_eighth_is_held_out():
    held = [
        world.is_held_out(c, s, m)
        for c in range(len(COLOURS))
        for s in range(len(SHAPES))
        for m in range(len(MOTIONS))
    ]
    assert sum(held) * 8 == len(held)


@pytest.mark.parametrize(
    ("split", "held_out"), [("train", False), ("seen", False), ("held_out", True)]
)
def test_splits(split, held_out):
    scenes = world.sample_scenes(1500, 1, split=split)
    assert all(
        world.is_held_out(*triple) is held_out for scene in triples(scenes) for triple in scene
    )


def test_all_split_holds_an_eighth_and_an_unknown_one_is_refused():
    scenes = world.sample_scenes(4000, 2, split="all", two_objects=0.0)
    share = sum(world.is_held_out(*scene[0]) for scene in triples(scenes)) / len(scenes)
    assert abs(share - 0.125) < 0.02
    with pytest.raises(UsageError, match="held_out"):
        world.sample_scenes(1, 0, split="test")  # type: ignore[arg-type]


def test_values_are_spread_and_pairs_differ_in_colour():
    scenes = world.sample_scenes(8000, 3)
    assert abs((scenes.count == 2).float().mean() - 0.3) < 0.02
    for index, names in (
        (scenes.colour, COLOURS), (scenes.shape, SHAPES), (scenes.motion, MOTIONS),
    ):  # fmt: skip
        share = torch.bincount(index[:, 0], minlength=len(names)) / len(scenes)
        assert (share * len(names) - 1).abs().max() < 0.15
    assert (torch.bincount(scenes.background, minlength=len(BACKGROUNDS)) > 1000).all()
    two = scenes.count == 2
    assert (scenes.colour[two, 0] != scenes.colour[two, 1]).all()


def test_excluded_pairs_never_occur_and_the_rest_contrasts():
    scenes = world.sample_scenes(3000, 4)
    rows = torch.stack([world.background_rows(i, 64) for i in range(len(BACKGROUNDS))])
    palette = torch.tensor(list(world.PALETTE.values()))
    for k in range(2):
        some = scenes.count > k
        gap = rows[scenes.background[some]] - palette[scenes.colour[some, k]][:, None]
        assert gap.norm(dim=-1).min() >= world.MIN_CONTRAST
        assert gap.abs().amax(-1).min() > 0.25, "the judge separates by the largest channel"
    assert world.is_excluded(COLOURS.index("orange"), BACKGROUNDS.index("sunset gradient"))
    assert not world.is_excluded(COLOURS.index("red"), BACKGROUNDS.index("black"))


@pytest.mark.parametrize("two_objects", [0.0, 1.0])
def test_paths_stay_inside_and_radii_in_range(two_objects):
    scenes = world.sample_scenes(4000, 5, two_objects=two_objects)
    x, y, radius = world.paths(scenes, U)
    for centre in (x, y):
        assert (centre - radius).min() > 0 and (centre + radius).max() < 1
    fixed = scenes.growth == 1
    assert radius[fixed].min() >= world.RADIUS[0] and radius[fixed].max() <= world.RADIUS[1]
    ratio = radius.amax(-1)[~fixed] / radius.amin(-1)[~fixed]
    assert ratio.min() >= world.GROWTH[0] - 1e-4 and ratio.max() <= world.GROWTH[1] + 1e-4
    assert radius.max() <= world.LARGE_RADIUS + 1e-4


def test_two_objects_hardly_cover_each_other():
    scenes = world.sample_scenes(3000, 6, two_objects=1.0)
    x, y, radius = world.paths(scenes, U)
    gap = torch.hypot(x[:, 0] - x[:, 1], y[:, 0] - y[:, 1]) / radius.sum(1)
    assert gap.min() > 0.5
    assert (gap.amin(-1) > 0.7).float().mean() > 0.99


def test_motions_do_what_they_are_called():
    scenes = world.sample_scenes(3000, 7, two_objects=0.0)
    x, y, radius = (path[:, 0] for path in world.paths(scenes, U))
    dx, dy = x[:, -1] - x[:, 0], y[:, -1] - y[:, 0]
    for index, name in enumerate(MOTIONS):
        m = scenes.motion[:, 0] == index
        sign = -1 if name.endswith(("left", "up")) else 1
        if name in ("moving left", "moving right"):
            assert (dx[m] * sign >= 18 / 64 - 1e-4).all() and dy[m].abs().max() < 1e-6
        elif name in ("moving up", "moving down"):
            assert (dy[m] * sign >= 18 / 64 - 1e-4).all() and dx[m].abs().max() < 1e-6
        elif name == "bouncing":
            step = y[m].diff(dim=-1).sign()
            turns = (step[:, 1:] * step[:, :-1] < 0).sum(-1)
            assert dy[m].abs().max() < 1e-5 and (turns == 2 * world.HOPS - 1).all()
        elif name == "circling":
            area = 0.5 * (x[m] * y[m].roll(1, -1) - y[m] * x[m].roll(1, -1)).sum(-1).abs()
            assert torch.allclose(area, math.pi * scenes.travel[m, 0] ** 2, rtol=0.01)
        else:
            assert (x[m].std(-1) + y[m].std(-1)).max() < 1e-6
        grows = {"growing": 1, "shrinking": -1}.get(name, 0)
        assert ((radius[m, -1] - radius[m, 0]).sign() == grows).all()


def test_same_seed_same_scenes_and_same_pixels():
    a, b, c = (world.sample_scenes(64, seed) for seed in (8, 8, 9))
    assert torch.equal(a.start, b.start) and not torch.equal(a.start, c.start)
    assert torch.equal(world.render(a, 3, 32), world.render(b, 3, 32))
    generator = torch.Generator().manual_seed(8)
    first, second = (world.sample_scenes(64, generator) for _ in range(2))
    assert torch.equal(first.start, a.start) and not torch.equal(second.start, a.start)


@pytest.mark.parametrize(("frames", "size"), [(1, 64), (5, 48), (17, 64), (33, 128)])
def test_render_shape_range_and_batch_independence(frames, size):
    scenes = world.sample_scenes(4, 10, two_objects=0.5)
    video = world.render(scenes, frames, size)
    assert video.shape == (4, frames, size, size, 3) and video.dtype == torch.float32
    assert video.min() >= 0 and video.max() <= 1
    torch.testing.assert_close(world.render(scenes[2], frames, size)[0], video[2])
    torch.testing.assert_close(
        world.render(scenes[torch.tensor([3, 1])], frames, size)[1], video[1]
    )


def test_a_scene_looks_the_same_at_every_size_and_frame_count():
    scenes = world.sample_scenes(8, 11, two_objects=0.5)
    small = world.render(scenes, 17, 64)
    large = world.render(scenes, 33, 128)[:, ::2]
    large = large.unflatten(2, (64, 2)).unflatten(4, (64, 2)).mean((3, 5))
    assert (small - large).abs().mean() < 0.003
    assert (small - large).abs().max() < 0.35


@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=SHAPES)
@pytest.mark.parametrize("radius", [6.0, 11.3, 32.0])
def test_shape_area_centre_and_extent(shape, radius):
    axis = torch.arange(-48, 48) + 0.5 + 0.2
    x, y = axis[None, :], axis[:, None] - 0.3
    cover = shapes.coverage(shape, x, y, torch.tensor(radius))
    area = cover.sum()
    assert abs(area / (shapes.AREAS[shape] * radius**2) - 1) < 0.02
    assert ((cover * x).sum() / area).abs() < 0.1
    assert ((cover * y).sum() / area).abs() < 0.1
    assert cover[(x.abs() > radius + 0.5) | (y.abs() > radius + 0.5)].sum() == 0
    edge = ((cover > 0) & (cover < 1)).sum()
    assert edge < 12 * radius * 2, "anti-aliasing is one pixel wide"


def test_later_object_is_on_top_and_colours_are_the_palette():
    scenes = world.sample_scenes(1, 12, two_objects=1.0)
    scenes.start[:] = 0.5
    scenes.motion[:], scenes.travel[:], scenes.growth[:] = 8, 0.0, 1.0
    scenes.shape[0] = torch.tensor([1, 0])
    scenes.radius[0] = torch.tensor([13 / 64, 6 / 64])
    frame = world.render(scenes, 1, 64)[0, 0]
    palette = torch.tensor(list(world.PALETTE.values()))
    torch.testing.assert_close(frame[32, 32], palette[scenes.colour[0, 1]])
    torch.testing.assert_close(frame[32, 40], palette[scenes.colour[0, 0]])


def test_expected_and_description_name_everything():
    scenes = world.sample_scenes(20, 13, two_objects=0.5)
    for i in range(20):
        want = world.expected(scenes, i)
        assert len(want.objects) == int(scenes.count[i])
        assert want.objects[0].colour == COLOURS[int(scenes.colour[i, 0])]
    text = world.describe_world()
    for name in (*COLOURS, *SHAPES, *MOTIONS, *BACKGROUNDS, "sin", "1.9", "mod 8"):
        assert name in text
