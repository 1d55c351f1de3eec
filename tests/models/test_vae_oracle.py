"""The VAE against ``AutoencoderKLWan`` of diffusers with random weights and our key map."""

from __future__ import annotations

import pytest
import torch

from turbodiffusion.models.cards import MINI_VAE, WAN_VAE, VAEConfig
from turbodiffusion.models.vae import WanVAE
from turbodiffusion.weights.layouts import rename

diffusers = pytest.importorskip("diffusers")

CONFIGS = {
    "wan": VAEConfig(dim=16),
    "mini": MINI_VAE,
    "8x time": VAEConfig(8, 4, (1, 2, 2, 4), 1, (True, True, True)),
    "early time": VAEConfig(8, 4, (1, 2, 4), 2, (True, False)),
}
TOLERANCE = 1e-5  # of outputs around 1; both sum in fp32, in another order


def oracle(config: VAEConfig) -> torch.nn.Module:
    return diffusers.AutoencoderKLWan(
        base_dim=config.dim,
        z_dim=config.z_dim,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
        temperal_downsample=list(config.temporal_downsample),
        latents_mean=list(config.latent_mean),
        latents_std=list(config.latent_std),
    ).eval()


def pair(config: VAEConfig) -> tuple[WanVAE, torch.nn.Module]:
    """Ours and theirs with the same random weights, gains included."""
    ours, theirs = WanVAE(config), oracle(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = name.endswith("gamma")
            parameter.copy_(1 + 0.2 * noise if gain else noise * parameter[0].numel() ** -0.5)
        for parameter in ours.decoder.head.parameters():
            parameter.mul_(0.2)  # keeps most of the video in [-1, 1], where diffusers clamps
    state = ours.state_dict()
    names = rename(state.keys(), "vae", "diffusers")
    theirs.load_state_dict({names[name]: value for name, value in state.items()})
    return ours, theirs


@pytest.fixture(params=CONFIGS, scope="module")
def networks(request) -> tuple[WanVAE, torch.nn.Module]:
    return pair(CONFIGS[request.param])


# diffusers splits clips into stretches of 4 frames whatever the strides, too few for a stride of 8.
@pytest.mark.parametrize("networks", ["wan", "mini", "early time"], indirect=True)
@pytest.mark.parametrize("frames", [1, 5, 13])
def test_encode(networks, frames):
    ours, theirs = networks
    side = ours.config.spatial_stride
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(2, 3, frames, 4 * side, 3 * side, generator=generator) * 2 - 1
    with torch.no_grad():
        expected = theirs.encode(video).latent_dist
    for actual, moment in zip(
        ours.encode_moments(video), (expected.mean, expected.logvar), strict=True
    ):
        # diffusers clamps the log-variance
        torch.testing.assert_close(actual.clamp(-30, 20), moment, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(ours.encode(video), expected.mode(), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("latent_frames", [1, 2, 4])
def test_decode(networks, latent_frames):
    ours, theirs = networks
    generator = torch.Generator().manual_seed(2)
    latent = torch.randn(2, ours.config.z_dim, latent_frames, 4, 3, generator=generator)
    with torch.no_grad():
        expected = theirs.decode(latent).sample
    actual = ours.decode(latent)
    assert (actual.abs() < 1).float().mean() > 0.9  # clamped values would prove nothing
    torch.testing.assert_close(actual.clamp(-1, 1), expected, atol=TOLERANCE, rtol=0)


def test_names_and_shapes_of_the_released_size():
    with torch.device("meta"):
        ours, theirs = WanVAE(WAN_VAE).state_dict(), oracle(WAN_VAE).state_dict()
    names = rename(ours.keys(), "vae", "diffusers")
    assert len(names) == 194
    assert {names[name]: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items()
    }


def test_scaling_constants_are_those_of_diffusers():
    config = diffusers.AutoencoderKLWan(base_dim=4).config
    assert tuple(config.latents_mean) == WAN_VAE.latent_mean
    assert tuple(config.latents_std) == WAN_VAE.latent_std
