"""The autoencoder on overlapping tiles, for GPUs that cannot hold a whole picture's features.

Each tile is encoded or decoded by itself over the whole length of the clip, so only one tile's
features and history are alive; results are collected on the host and blended linearly where tiles
overlap. The network looks further than an overlap, and its middle attends to a whole frame, so
this approximates :meth:`WanVAE.decode`: with the embedded models' trained autoencoder the mean
difference is below 0.01 of the value range (``tests/memory/test_tiling.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from turbodiffusion.models.vae import WanVAE

TILES = (64, 48, 32, 24, 16)
"""Sides of a tile in latent cells that the planner tries, largest first."""

OVERLAP = 4
"""A tile overlaps the next one by a quarter of its side: ``side // OVERLAP``."""


@torch.no_grad()
def decode_tiled(vae: WanVAE, latent_BZTHW: Tensor, tile: int) -> Iterator[Tensor]:
    """As :meth:`WanVAE.decode_frames`, but the frames come after all tiles are done, on the host.

    Args:
        tile: side in latent cells; a picture that is not larger is decoded whole.
    """
    if max(latent_BZTHW.shape[-2:]) <= tile:
        yield from vae.decode_frames(latent_BZTHW)
        return
    stride = vae.config.spatial_stride
    video = _blend(latent_BZTHW, tile, lambda z: vae.decode(z), stride, 1)
    yield video[:, :, :1]
    yield from video[:, :, 1:].split(vae.config.temporal_stride, dim=2)


@torch.no_grad()
def encode_tiled(vae: WanVAE, video_BCFHW: Tensor, tile: int) -> Tensor:
    """As :meth:`WanVAE.encode`, on the device of ``video_BCFHW``."""
    stride = vae.config.spatial_stride
    if max(video_BCFHW.shape[-2:]) <= tile * stride:
        return vae.encode(video_BCFHW)
    latent = _blend(video_BCFHW, tile * stride, lambda x: vae.encode(x), 1, stride)
    return latent.to(video_BCFHW)


def _blend(x: Tensor, tile: int, run: Callable[[Tensor], Tensor], grow: int, shrink: int) -> Tensor:
    """The mean of what ``run`` makes of tiles of ``tile`` cells of ``x``, weighted by ramps."""
    height, width = x.shape[-2:]
    total, weights = torch.empty(0), torch.zeros(height * grow // shrink, width * grow // shrink)
    for top, bottom in _spans(height, tile, shrink):
        for left, right in _spans(width, tile, shrink):
            part = run(x[..., top:bottom, left:right].contiguous())
            if not total.numel():
                total = torch.zeros(*part.shape[:-2], *weights.shape)
            rows, columns = part.shape[-2:]
            weight = _ramp(rows)[:, None] * _ramp(columns)[None]
            place = (
                ...,
                slice(top * grow // shrink, top * grow // shrink + rows),
                slice(left * grow // shrink, left * grow // shrink + columns),
            )
            total[place] += part.float().cpu() * weight
            weights[place] += weight
    return total.div_(weights)


def _spans(length: int, tile: int, multiple: int) -> list[tuple[int, int]]:
    """Begin and end of tiles spread evenly along one side, begins at multiples of ``multiple``."""
    if length <= tile:
        return [(0, length)]
    overlap = tile // OVERLAP
    count = math.ceil((length - overlap) / (tile - overlap))
    begins = [i * (length - tile) // (count - 1) // multiple * multiple for i in range(count)]
    return [(begin, begin + tile) for begin in begins]


def _ramp(length: int) -> Tensor:
    """Weights along one side of a tile: 1 inside, falling linearly towards both ends."""
    edge = max(1, length // OVERLAP)
    distance = torch.minimum(torch.arange(length), torch.arange(length).flip(0)) + 0.5
    return (distance / edge).clamp(max=1.0)
