"""What training sees: the same clips for the same numbers, cut and pooled as the recipe says."""

import pytest
import torch

from tests.mini import nano
from turbodiffusion.mini import data, world
from turbodiffusion.mini.vocabulary import build_tokenizer
from turbodiffusion.models.text_encoder import Tokenizer

CPU = torch.device("cpu")


def batch(step, rank=0, **changes):
    return data.vae_batch(nano.vae_recipe(**changes), step, rank, 9, 32, CPU)


def test_a_step_has_its_batch():
    assert torch.equal(batch(3), batch(3))
    assert not torch.equal(batch(3), batch(6)), "same kind of step, other clips"
    assert not torch.equal(batch(3), batch(3, rank=1))
    assert not torch.equal(batch(3), batch(3, seed=99))


def test_kinds_of_batches():
    recipe = {"batch": 4, "crops_per_clip": 2, "crop": (9, 16)}
    recipe |= {"full_every": 4, "full_batch": 3, "still_every": 2}
    shapes = [tuple(batch(step, **recipe).shape) for step in range(8)]
    crops, still, whole = (4, 3, 9, 16, 16), (4, 3, 5, 16, 16), (3, 3, 9, 32, 32)
    assert shapes == [crops, still, crops, whole] * 2
    only = [
        tuple(batch(step, full_every=0, still_every=0, crop=(5, 16)).shape) for step in range(4)
    ]
    assert only == [(2, 3, 5, 16, 16)] * 4
    values = batch(0)
    assert values.dtype == torch.float32 and -1 <= values.min() < values.max() <= 1


def test_crops_as_large_as_the_clip_are_as_many_whole_clips():
    recipe = {"batch": 4, "crops_per_clip": 2, "full_every": 0, "still_every": 0}
    whole = batch(0, crop=(17, 64), **recipe)
    assert whole.shape == (4, 3, 9, 32, 32)
    assert not any(torch.equal(whole[i], whole[j]) for i in range(4) for j in range(i))
    assert batch(1, crop=(17, 64), **recipe | {"still_every": 2}).shape == (4, 3, 5, 32, 32)


def test_clips_are_training_clips():
    scenes = world.sample_scenes(300, 41, split="train")
    video = data.clips(300, 41, 5, 16, CPU)
    assert video.shape == (300, 3, 5, 16, 16)
    wanted = world.render(scenes, 5, 16) * 2 - 1
    torch.testing.assert_close(video.permute(0, 2, 3, 4, 1), wanted, rtol=0, atol=1e-6)
    for i in range(300):
        for k in range(int(scenes.count[i])):
            triple = (int(scenes.colour[i, k]), int(scenes.shape[i, k]), int(scenes.motion[i, k]))
            assert not world.is_held_out(*triple)


def marked(clips=1, frames=9, side=40, at=(25, 12)):
    """Every pixel knows where it is: channels are time, row and column; one pixel stands out."""
    f, y, x = torch.meshgrid(*(torch.arange(n) for n in (frames, side, side)), indexing="ij")
    video = torch.stack([f, y, x]).float().repeat(clips, 1, 1, 1, 1) * 1e-3
    video[:, 0, :, at[0], at[1]] += 1.0
    return video


def corners(crops):
    """First frame, top and left of every crop of ``marked``."""
    return [tuple(round(1000 * v) for v in c[:, 0, 0, 0].frac().tolist()) for c in crops]


def test_crops_are_whole_pieces_of_the_clip():
    video = marked(clips=3)
    crops = data.crop_clips(video, (5, 16), 4, 0.5, seed=1)
    assert crops.shape == (12, 3, 5, 16, 16)
    for i, ((f, y, x), crop) in enumerate(zip(corners(crops), crops, strict=True)):
        assert torch.equal(crop, video[i // 4, :, f : f + 5, y : y + 16, x : x + 16])
    assert torch.equal(crops, data.crop_clips(video, (5, 16), 4, 0.5, seed=1))
    assert not torch.equal(crops, data.crop_clips(video, (5, 16), 4, 0.5, seed=2))
    assert len({f for f, _, _ in corners(data.crop_clips(marked(40), (5, 16), 1, 0, 3))}) == 5


@pytest.mark.parametrize(
    ("share", "low", "high"), [(1.0, 0.99, 1.0), (0.8, 0.76, 0.88), (0, 0, 0.1)]
)
def test_share_of_crops_that_centre_on_an_edge(share, low, high):
    """The only edge is one pixel; a crop is centred on it when its middle is next to it."""
    got = corners(data.crop_clips(marked(clips=200), (9, 16), 4, share, seed=5))
    centred = [abs(y + 8 - 25) <= 1 and abs(x + 8 - 12) <= 1 for _, y, x in got]
    assert low <= sum(centred) / len(centred) <= high


def test_crops_near_the_border_stay_inside():
    for at in ((0, 0), (39, 39), (0, 39)):
        crops = data.crop_clips(marked(clips=8, at=at), (5, 16), 2, 1.0, seed=4)
        assert crops.shape == (16, 3, 5, 16, 16)
    flat = torch.zeros(2, 3, 9, 40, 40)  # no edge at all: anywhere is as good
    assert data.crop_clips(flat, (5, 16), 2, 1.0, seed=4).shape == (4, 3, 5, 16, 16)


def test_a_crop_as_large_as_the_clip_is_the_clip():
    video = marked(clips=2)
    assert torch.equal(data.crop_clips(video, (17, 64), 1, 0.8, seed=1), video)


class Average(torch.nn.Module):
    """Stands for the autoencoder: a latent cell is the mean colour of its pixels."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode_parallel(self, video):
        assert video.dtype == torch.float32
        return torch.nn.functional.avg_pool3d(video[:, :, ::4], (1, 4, 4))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = build_tokenizer(list(world.WORDS), tmp_path_factory.mktemp("words") / "t.json")
    return Tokenizer.from_file(path, 24)


def pool_of(tokenizer, seed=500, **changes):
    settings = {"pool": 24, "first_pool": 16, "refresh": 2.0, **changes}
    pool = data.LatentPool(nano.teacher_recipe(**settings), Average(), tokenizer, 9, 32, CPU, seed)
    pool.chunk = 8
    return pool


def entry(seed, index):
    """Latent and content of clip ``index`` of the chunk with this seed, made independently."""
    scenes = world.sample_scenes(8, seed, split="train")
    latent = Average().encode_parallel(data.render_clips(scenes, 9, 32, CPU))[index]
    return latent.bfloat16(), world.expected(scenes, index)


def test_pool_is_filled_in_order_and_replaces_the_oldest(tokenizer):
    pool = pool_of(tokenizer)
    assert len(pool) == 0
    pool.add(16)
    assert len(pool) == 16 and pool.latents.shape == (24, 3, 3, 8, 8)
    pool.add(16)
    assert len(pool) == 24 and pool.added == 32
    for slot, seed in ((0, 524), (7, 524), (8, 508), (15, 508), (16, 516), (23, 516)):
        assert torch.equal(pool.latents[slot], entry(seed, slot % 8)[0]), slot


def test_pool_depends_on_its_seed_alone(tokenizer):
    first, again, other = (pool_of(tokenizer, seed) for seed in (500, 500, 501))
    for pool in (first, again, other):
        pool.add(20)
    assert torch.equal(first.latents[:20], again.latents[:20])
    assert torch.equal(first.ids[:20], again.ids[:20])
    assert not torch.equal(first.latents[:20], other.latents[:20])


def test_refresh_pays_the_exact_share(tokenizer):
    pool = pool_of(tokenizer, refresh=3.0)
    pool.add(16)
    added = []
    for _ in range(16):
        pool.refresh()
        added.append(pool.added - 16)
    assert added[:3] == [0, 0, 8], "whole chunks as soon as they are due"
    assert added[-1] == 48 == 16 * 3
    none = pool_of(tokenizer, refresh=0.0)
    none.add(8)
    none.refresh()
    assert none.added == 8


@pytest.mark.parametrize("refreshes", [0, 3, 8, 40])
def test_a_pool_is_rendered_again_from_two_numbers(tokenizer, refreshes):
    """Before, during and after the first entries are replaced; the first fill ends in a part."""
    settings = {"pool": 24, "first_pool": 13, "refresh": 3.0}
    pool, again = pool_of(tokenizer, **settings), pool_of(tokenizer, **settings)
    pool.fill()
    for _ in range(refreshes):
        pool.refresh()
    again.load_state_dict(pool.state_dict())
    for _ in range(2):
        assert len(pool) == len(again) and pool.added == again.added
        for name in ("latents", "ids", "masks"):
            one, other = getattr(pool, name), getattr(again, name)
            assert torch.equal(one[: len(pool)], other[: len(pool)]), name
        for _ in range(3):
            pool.refresh()
            again.refresh()


def test_a_refresh_of_several_chunks_is_paid_at_once(tokenizer):
    pool = pool_of(tokenizer, refresh=20.0)
    pool.fill()
    pool.refresh()
    assert pool.added == 16 + 16 and pool.debt == 4


def test_captions_say_what_their_clip_shows(tokenizer):
    pool = pool_of(tokenizer)
    pool.add(16)
    decode = tokenizer._backend.decode
    texts = set()
    for slot in range(16):
        want = entry(500 + slot // 8 * 8, slot % 8)[1]
        for ids, mask in zip(pool.ids[slot], pool.masks[slot], strict=True):
            assert mask.sum() == (ids != 0).sum() and ids[mask.sum() - 1] == 1
            text = decode(ids[: mask.sum() - 1].tolist())
            texts.add(text)
            got = world.parse(text)
            assert got is not None and len(got.objects) == len(want.objects), text
            assert got.background in (None, want.background), text
            for a, b in zip(got.objects, want.objects, strict=True):
                assert a.colour in (None, b.colour) and a.shape in (None, b.shape), text
                assert a.motion in (None, b.motion), text
    assert len(texts) > 40, "the captions of a clip differ from each other"


def test_draws_are_pairs_of_the_pool(tokenizer):
    pool = pool_of(tokenizer)
    pool.add(16)
    x, ids, masks = pool.draw(200, torch.Generator().manual_seed(1))
    same = pool.draw(200, torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip((x, ids, masks), same, strict=True))
    assert x.dtype == torch.float32 and ids.dtype == torch.int64
    drawn = set()
    for latent, row, mask in zip(x, ids, masks, strict=True):
        slots = [s for s in range(16) if torch.equal(pool.latents[s].float(), latent)]
        variants = [
            (s, v)
            for s in slots
            for v in range(data.CAPTIONS_PER_CLIP)
            if torch.equal(pool.ids[s, v], row) and torch.equal(pool.masks[s, v], mask)
        ]
        assert variants, "an entry's caption never meets another entry's latent"
        drawn |= set(variants)
    assert {s for s, _ in drawn} == set(range(16)), "empty slots are not drawn, filled ones are"
    assert {v for _, v in drawn} == set(range(data.CAPTIONS_PER_CLIP))


def test_chunks_fit_the_memory_they_are_given():
    assert data.chunk_of(17, 64) == 120
    assert data.chunk_of(33, 128) == 15
    assert data.chunk_of(5, 8) == 128
    assert data.chunk_of(81, 2048) == 1
    scenes = world.sample_scenes(20, 5)
    whole = data.render_clips(scenes, 33, 128, CPU)  # needs two chunks
    single = data.render_clips(scenes[17], 33, 128, CPU)
    assert torch.equal(whole[17:18], single)
