"""Losses fall: the objectives, gradients and data fit together."""

import json
import math
from itertools import pairwise

import pytest
import torch

from tests.mini import nano
from turbodiffusion.mini import data, train_vae
from turbodiffusion.mini.optim import MasterOptimizer
from turbodiffusion.mini.train_teacher import noisy_pair, running_mean, train_teacher
from turbodiffusion.models.vae import WanVAE


def psnr(square):
    return -10 * math.log10(square.item() / 4)


def test_autoencoder_overfits_a_few_clips():
    stage = nano.vae_recipe(lr=3e-3)
    torch.manual_seed(stage.seed)
    vae = WanVAE(nano.NANO.vae)
    vae.init_weights()
    optim = MasterOptimizer(vae.named_parameters(), stage)
    video = data.clips(3, 17, 5, 16, torch.device("cpu"))
    values = []
    for step in range(35):
        generator = torch.Generator().manual_seed(step)
        loss, square = train_vae.vae_loss(vae, video, stage.kl, generator)
        loss.backward()
        optim.step(stage.lr * min(1.0, (step + 1) / 10))
        values.append(psnr(square))
    assert values[-1] > values[0] + 5
    with torch.no_grad():
        seen = vae.decode(vae.encode(video))
        square = (seen - video).square().mean()
    assert psnr(square) > values[0] + 5, "the streamed form shows what the training form learned"


def test_posterior_is_pulled_towards_the_normal():
    """KL of N(μ, σ²) against N(0, 1), as a mean over latent elements."""

    class Fixed(torch.nn.Module):
        def encode_moments(self, video):
            return torch.full((1, 8, 1, 2, 2), 1.5), torch.full((1, 8, 1, 2, 2), math.log(0.25))

        def decode_parallel(self, z):
            return torch.zeros(1, 3, 1, 8, 8)

    video = torch.full((1, 3, 1, 8, 8), 0.5)
    loss, square = train_vae.vae_loss(Fixed(), video, 10.0, torch.Generator())
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(1.5, 0.5), torch.distributions.Normal(0.0, 1.0)
    )
    assert square.item() == 0.25
    assert loss.item() == pytest.approx(0.5 + 0.25 + 10 * wanted.item(), rel=1e-6)


def test_noisy_pairs_are_rectified_flow():
    x0 = torch.randn(4000, 2, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    x_t, target, t = noisy_pair(x0, 2.0, torch.Generator().manual_seed(2))
    assert t.shape == (4000, 1) and t.min() > 0 and t.max() < 1
    time = t[:, :, None, None, None]
    noise = target + x0
    torch.testing.assert_close(x_t, (1 - time) * x0 + time * noise, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x_t - time * target, x0, rtol=1e-5, atol=1e-5)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    # t = 2u/(1 + u) of uniform u: below 2/3 half of the time, the mean is 2 − 2·ln 2
    assert abs((t < 2 / 3).float().mean() - 0.5) < 0.03
    assert abs(t.mean() - (2 - 2 * math.log(2))) < 0.015
    straight = noisy_pair(x0, 1.0, torch.Generator().manual_seed(2))[2]
    assert abs(straight.mean() - 0.5) < 0.015


def test_logged_mean_starts_at_the_first_loss_and_survives_a_broken_one():
    mean = running_mean(None, torch.tensor(2.0))
    assert mean.item() == 2.0
    mean = running_mean(mean, torch.tensor(1.0))
    assert mean.item() == pytest.approx(1.98)
    assert running_mean(mean, torch.tensor(float("nan"))).item() == pytest.approx(1.98)


def train(folder, steps, batch, monkeypatch):
    """Losses that a nano teacher logs, on latents of a random autoencoder."""
    monkeypatch.setattr(train_vae, "STAT_CLIPS", 64)
    teacher = nano.teacher_recipe(
        steps=steps, batch=batch, lr=4e-3, warmup=20, pool=256, first_pool=256, refresh=0.0
    )
    size = nano.nano(nano.vae_recipe(steps=1), teacher=teacher)
    train_vae.train_vae(size, folder, nano.CPU)
    report = train_teacher(size, folder, nano.CPU)
    lines = (folder / "teacher.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines], report


@pytest.mark.slow
def test_teacher_learns(tmp_path, monkeypatch):
    losses, report = train(tmp_path, 800, 32, monkeypatch)
    assert len(losses) == 8 and report["samples"] == 800 * 32
    assert all(b < a + 0.02 for a, b in pairwise(losses))
    assert losses[-1] < 0.6 * losses[0]


def test_teacher_begins_to_learn(tmp_path, monkeypatch):
    losses, report = train(tmp_path, 200, 16, monkeypatch)
    assert report["loss"] == losses[-1] < 0.85 * losses[0]
