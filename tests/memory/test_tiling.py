"""Tiles against the whole: exact blending, and closeness with a trained autoencoder."""

from __future__ import annotations

import itertools

import pytest
import torch

from turbodiffusion.memory import tiling
from turbodiffusion.memory.tiling import OVERLAP, decode_tiled, encode_tiled
from turbodiffusion.mini.data import clips
from turbodiffusion.models.vae import WanVAE
from turbodiffusion.weights.find import find
from turbodiffusion.weights.load import load_vae

SIZES = [(16, 16), (17, 40), (33, 24), (31, 63), (100, 16)]


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    files = find("micro")
    return load_vae(files.vae, files.card.vae, dtype=torch.float32)


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    return clips(2, 0, 9, 128, torch.device("cpu"))


@pytest.mark.parametrize(("height", "width"), SIZES, ids=str)
def test_blending_what_does_not_change_changes_nothing(height: int, width: int) -> None:
    x = torch.randn(1, 2, 3, height, width)
    torch.testing.assert_close(tiling._blend(x, 16, lambda t: t, 1, 1), x)


@pytest.mark.parametrize(("grow", "shrink"), [(8, 1), (1, 8)], ids=["decode", "encode"])
@pytest.mark.parametrize(("height", "width"), SIZES, ids=str)
def test_blending_up_and_down(height: int, width: int, grow: int, shrink: int) -> None:
    """Every result cell gets its value from the right place, whatever the tiles."""
    x = torch.randn(1, 1, 1, height * shrink, width * shrink)

    def run(part: torch.Tensor) -> torch.Tensor:
        if grow > 1:
            return part.repeat_interleave(grow, -1).repeat_interleave(grow, -2)
        return part[..., ::shrink, ::shrink]

    torch.testing.assert_close(tiling._blend(x, 16 * shrink, run, grow, shrink), run(x))


@pytest.mark.parametrize("length", range(17, 200, 7))
def test_tiles_overlap_and_cover(length: int) -> None:
    spans = tiling._spans(length, 16, 1)
    assert spans[0][0] == 0 and spans[-1][1] == length
    for (_, end), (begin, _) in itertools.pairwise(spans):
        assert end - begin >= 16 // OVERLAP


def test_a_small_picture_is_decoded_whole(vae: WanVAE, video: torch.Tensor) -> None:
    latent = vae.encode(video[:1, :, :, :64, :64])
    parts = list(decode_tiled(vae, latent, 16))
    whole = list(vae.decode_frames(latent))
    assert all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True))
    assert torch.equal(encode_tiled(vae, video[:1, :, :, :64, :64], 16), latent)


def test_tiles_come_close_to_the_whole(vae: WanVAE, video: torch.Tensor) -> None:
    """The measured means are 0.009 and 0.003 of a range of 2, where the autoencoder itself is off
    by 0.025; coding and decoding with tiles is not worse by more than a tenth."""
    latent = vae.encode(video)
    whole = vae.decode(latent)
    for tile, limit in ((16, 0.015), (24, 0.005)):
        parts = list(decode_tiled(vae, latent, tile))
        assert [p.shape[2] for p in parts] == [1, 4, 4]
        tiled = torch.cat(parts, 2)
        assert (tiled - whole).abs().mean() < limit
        through = torch.cat(list(decode_tiled(vae, encode_tiled(vae, video, tile), tile)), 2)
        assert (through - video).abs().mean() < 1.1 * (whole - video).abs().mean()


def test_only_a_tile_is_seen_at_a_time(vae: WanVAE, video: torch.Tensor, monkeypatch) -> None:
    seen = []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: seen.append(z.shape[-2:]) or decode(z))
    list(decode_tiled(vae, vae.encode(video[:1]), 16))
    assert set(seen) == {(16, 16)} and len(seen) == 9
