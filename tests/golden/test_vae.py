"""The VAE against the released network's outputs at miniature size, in fp32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.golden.vectors import Golden, golden_files, golden_id, load_golden, relative_l2
from turbodiffusion.models.cards import WAN_VAE
from turbodiffusion.models.vae import WanVAE

TOLERANCE = 1e-4


def build(golden: Golden) -> WanVAE:
    """The released shape at the file's width; latents are scaled with the released constants."""
    meta = golden.metadata
    config = replace(WAN_VAE, dim=int(meta["dim"]), z_dim=int(meta["z_dim"]))
    assert config.temporal_stride == int(meta["temporal_window"])
    vae = WanVAE(config)
    vae.load_state_dict(golden.group("sd"))
    return vae


@pytest.fixture(params=golden_files("vae*"), ids=golden_id, scope="module")
def golden(request) -> Golden:
    return load_golden(request.param)


@pytest.mark.parametrize("form", ["encode", "encode_parallel"])
@pytest.mark.parametrize("name", ["latent", "latent_first_frame"])
def test_encode(golden, form, name):
    vae, expected = build(golden), golden[name]
    video = golden["in.video"]
    if name == "latent_first_frame":
        video = video[:, :, :1]
    actual = getattr(vae, form)(video).detach()
    assert actual.shape == expected.shape
    assert relative_l2(actual, expected) < TOLERANCE
    assert (actual - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("form", ["decode", "decode_parallel"])
@pytest.mark.parametrize(
    ("source", "name"),
    [("in.latent", "decoded"), ("latent", "recon"), ("latent_first_frame", "recon_first_frame")],
)
def test_decode(golden, form, source, name):
    vae, expected = build(golden), golden[name]
    actual = getattr(vae, form)(golden[source]).detach()
    assert actual.shape == expected.shape
    assert relative_l2(actual, expected) < TOLERANCE
    assert (actual - expected).abs().max() < TOLERANCE


def test_reconstruction_end_to_end(golden):
    vae = build(golden)
    with torch.no_grad():
        actual = vae.decode(vae.encode(golden["in.video"]))
    assert relative_l2(actual, golden["recon"]) < TOLERANCE
