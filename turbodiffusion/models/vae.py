"""The Wan video autoencoder: pixels to the latents a diffusion transformer works on, and back.

A clip of ``s·n + 1`` frames becomes ``n + 1`` latent frames, ``s`` being the temporal stride. The
network is causal in time, so it can run stretch by stretch with the few past frames each layer
needs (a :data:`~turbodiffusion.models.vae_layers.Cache`): frame 0 alone, then ``s`` frames for each
latent frame. Memory then does not grow with the length of the clip, and frames can be shown while
later ones are still decoded::

    for video_BCFHW in vae.decode_frames(latent):   # 1 frame, then s, s, …
        writer.write(video_BCFHW)

``encode_parallel`` and ``decode_parallel`` run the whole clip at once and are differentiable; they
equal the streamed forms to rounding.

Tensors are B batch, C = 3 colours in [-1, 1], F frames, Z latent channels, T latent frames, H and W
pixels or latent cells. Strides, widths and channel counts come from the
:class:`~turbodiffusion.models.cards.VAEConfig`. Parameter names are the released keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import VAEConfig
from turbodiffusion.models.vae_layers import (
    Cache,
    CausalConv3d,
    Down,
    FrameAttention,
    Residual,
    RMSNorm,
    SiLU,
    Up,
    run,
)

COLOURS = 3


def _middle(channels: int) -> nn.Sequential:
    return nn.Sequential(
        Residual(channels, channels), FrameAttention(channels), Residual(channels, channels)
    )


def _head(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(RMSNorm(channels), SiLU(), CausalConv3d(channels, out_channels, (3, 3, 3)))


class Encoder(nn.Module):
    """(B, 3, F, H, W) → (B, 2·Z, T, h, w), mean and log-variance before the last 1×1×1 mixing."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.dim * m for m in config.dim_mult]
        self.conv1 = CausalConv3d(COLOURS, config.dim, (3, 3, 3))
        layers: list[nn.Module] = []
        channels = config.dim
        for stage, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                layers.append(Residual(channels, width))
                channels = width
            if stage < len(widths) - 1:
                layers.append(Down(width, config.temporal_downsample[stage]))
        self.downsamples = nn.Sequential(*layers)
        self.middle = _middle(channels)
        self.head = _head(channels, 2 * config.z_dim)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        x = self.conv1(x, cache)
        for layers in (self.downsamples, self.middle, self.head):
            x = run(layers, x, cache)
        return x


class Decoder(nn.Module):
    """(B, Z, T, h, w) → (B, 3, F, H, W); one residual block more per stage than the encoder."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.dim * m for m in reversed(config.dim_mult)]
        temporal = config.temporal_downsample[::-1]
        channels = widths[0]
        self.conv1 = CausalConv3d(config.z_dim, channels, (3, 3, 3))
        self.middle = _middle(channels)
        layers: list[nn.Module] = []
        for stage, width in enumerate(widths):
            for _ in range(config.num_res_blocks + 1):
                layers.append(Residual(channels, width))
                channels = width
            if stage < len(widths) - 1:
                layers.append(Up(width, temporal[stage]))
                channels = width // 2
        self.upsamples = nn.Sequential(*layers)
        self.head = _head(channels, COLOURS)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        x = self.conv1(x, cache)
        for layers in (self.middle, self.upsamples, self.head):
            x = run(layers, x, cache)
        return x


class WanVAE(nn.Module):
    """Causal video autoencoder. Inputs are cast to the weights' dtype, outputs cast back.

    ``config`` holds the current latent scaling; :meth:`set_latent_stats` replaces it. The scaling
    constants are plain numbers rather than buffers, so they survive changes of dtype and weights
    assigned to a model that was built on the meta device.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = Decoder(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.conv1.weight.dtype

    def set_latent_stats(
        self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor
    ) -> None:
        """Scale latents with these per-channel values from now on, ``z_dim`` of each."""
        means, stds = (tuple(float(v) for v in values) for values in (mean, std))
        if not all(v > 0 for v in stds):
            raise ValueError(f"latent_std must be positive, got {stds}")
        self.config = replace(self.config, latent_mean=means, latent_std=stds)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Initialise for training from scratch; with PyTorch's default the network barely trains.

        Weights N(0, 1/fan_in) and zero biases keep the signal's size; the last layer of each
        residual branch is zero, so that every branch starts as the identity; time convolutions pass
        the newest frame through. Drawn on the CPU (``generator`` belongs there), so that a seed
        means the same on every device.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                fan_in = module.weight[0].numel()
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(noise * fan_in**-0.5)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, RMSNorm):
                module.gamma.fill_(1)
        for module in self.modules():
            if isinstance(module, Residual):
                nn.init.zeros_(module.residual[-1].get_parameter("weight"))
            elif isinstance(module, FrameAttention):
                module.proj.weight.zero_()
            elif isinstance(module, Down | Up) and module.time_conv is not None:
                weight = module.time_conv.weight
                weight.zero_()
                identity = torch.eye(weight.shape[1]).repeat(weight.shape[0] // weight.shape[1], 1)
                weight[:, :, -1, 0, 0].copy_(identity)

    def encode_moments(self, video_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, Z, T, h, w) of the posterior, unscaled; the training form."""
        mu, logvar = self._moments(video_BCFHW).to(video_BCFHW.dtype).chunk(2, dim=1)
        return mu, logvar

    def encode_parallel(self, video_BCFHW: Tensor) -> Tensor:
        """:meth:`encode` of the whole clip at once, differentiable."""
        return self._scaled(self._moments(video_BCFHW)).to(video_BCFHW.dtype)

    def decode_parallel(self, latent_BZTHW: Tensor) -> Tensor:
        """:meth:`decode` of the whole clip at once, differentiable."""
        self._check_latent(latent_BZTHW)
        z = self.conv2(self._unscaled(self._ready(latent_BZTHW)))
        return self.decoder(z).to(latent_BZTHW.dtype)

    @torch.no_grad()
    def encode(self, video_BCFHW: Tensor) -> Tensor:
        """Latents (B, Z, T, H/stride, W/stride) of a clip: the scaled mean, never a sample.

        Args:
            video_BCFHW: (B, 3, F, H, W) in [-1, 1]; F is ``temporal_stride·n + 1``, H and W are
                multiples of ``spatial_stride``.

        Raises:
            UsageError: a shape that does not fit, with the nearest one that does.
        """
        self._check_video(video_BCFHW)
        cache: Cache = {}
        stride = self.config.temporal_stride
        lengths = [1] + [stride] * ((video_BCFHW.shape[2] - 1) // stride)
        stretches = self._ready(video_BCFHW).split(lengths, dim=2)
        moments = self.conv1(torch.cat([self.encoder(x, cache) for x in stretches], dim=2))
        return self._scaled(moments).to(video_BCFHW.dtype)

    def decode(self, latent_BZTHW: Tensor) -> Tensor:
        """Video (B, 3, temporal_stride·(T − 1) + 1, H, W), not clamped to [-1, 1]."""
        return torch.cat(list(self.decode_frames(latent_BZTHW)), dim=2)

    def decode_frames(self, latent_BZTHW: Tensor) -> Iterator[Tensor]:
        """Decode one latent frame at a time: (B, 3, 1, H, W), then (B, 3, temporal_stride, H, W).

        Causal: the frames of a prefix of the latents are those of the whole, bit for bit.
        """
        self._check_latent(latent_BZTHW)
        return self._decode_frames(latent_BZTHW)

    @torch.no_grad()
    def _decode_frames(self, latent_BZTHW: Tensor) -> Iterator[Tensor]:
        cache: Cache = {}
        for z in self._ready(latent_BZTHW).split(1, dim=2):
            frames = self.decoder(self.conv2(self._unscaled(z)), cache)
            yield frames.to(latent_BZTHW.dtype)

    def _moments(self, video: Tensor) -> Tensor:
        self._check_video(video)
        return self.conv1(self.encoder(self._ready(video)))

    def _ready(self, x: Tensor) -> Tensor:
        """In the weights' dtype with channels innermost, which every layer then keeps."""
        return x.to(self.dtype, memory_format=torch.channels_last_3d)

    def _latent_stats(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and 1/std per channel in the working dtype; 1/std is rounded after std is.

        The released code rounds its constants to the weights' dtype before it inverts them.
        """
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=like.device)
            .to(like.dtype)
            .view(1, -1, 1, 1, 1)
            for values in (self.config.latent_mean, self.config.latent_std)
        )
        return mean, 1 / std

    def _scaled(self, moments: Tensor) -> Tensor:
        mu = moments.chunk(2, dim=1)[0]
        mean, inv_std = self._latent_stats(mu)
        return (mu - mean) * inv_std

    def _unscaled(self, latent: Tensor) -> Tensor:
        mean, inv_std = self._latent_stats(latent)
        return latent / inv_std + mean

    def _check_video(self, video: Tensor) -> None:
        """Refuse what the strides cannot hold; nothing is silently rounded."""
        time, space = self.config.temporal_stride, self.config.spatial_stride
        if video.ndim != 5 or video.shape[1] != COLOURS or 0 in video.shape:
            raise UsageError(
                "vae-video-shape",
                f"A video tensor of shape {tuple(video.shape)} cannot be encoded.",
                f"Give (batch, {COLOURS}, frames, height, width), none of them 0.",
            )
        frames, height, width = video.shape[2:]
        if (frames - 1) % time:
            below = frames - (frames - 1) % time
            raise UsageError(
                "vae-frames",
                f"A clip of {frames} frames cannot be encoded; the count must be {time}·n + 1.",
                f"Use {below} or {below + time} frames.",
            )
        if height % space or width % space:
            fits = [max(space, round(side / space) * space) for side in (width, height)]
            raise UsageError(
                "vae-size",
                f"Frames of {width}×{height} cannot be encoded; both must divide by {space}.",
                f"Resize or crop to {fits[0]}×{fits[1]}.",
            )

    def _check_latent(self, latent: Tensor) -> None:
        if latent.ndim != 5 or latent.shape[1] != self.config.z_dim or 0 in latent.shape:
            raise UsageError(
                "vae-latent-shape",
                f"A latent tensor of shape {tuple(latent.shape)} cannot be decoded.",
                f"Give (batch, {self.config.z_dim}, latent frames, height, width), none of them 0.",
            )
