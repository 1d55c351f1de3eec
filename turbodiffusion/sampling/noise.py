"""Random numbers that mean the same on every machine.

Noise is always drawn on the CPU and moved, because each kind of device has its own stream: a seed
then travels between machines. (The released scripts draw on the GPU; their videos cannot be
repeated by seed anywhere else, here included.) The stream is PyTorch's; processors of different
families may differ in the last bit of a value.

Several videos get one generator each, seeded ``seed``, ``seed + 1``, …: video i is the same whether
it is made alone or among others. The released scripts draw the whole batch from one generator
instead, so there only the batch as a whole repeats.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError

Source = torch.Generator | Sequence[torch.Generator]

_MAX_SEED = 2**63 - 1
WORTH_THREADS = 16
"""Videos from which their noise is drawn in threads: a large batch of few-step videos is made
faster than one core draws for it. Each generator has its own stream, so the order is free."""


def make_generators(seed: int, count: int) -> list[torch.Generator]:
    """CPU generators of ``count`` videos, video i seeded ``seed + i``."""
    if not 0 <= seed <= _MAX_SEED - count:
        raise UsageError(
            "sampling-seed",
            f"The seed must be between 0 and {_MAX_SEED - count}, not {seed}.",
            "Choose a smaller non-negative number.",
        )
    return [torch.Generator("cpu").manual_seed(seed + index) for index in range(count)]


def draw_noise(shape: Sequence[int], source: Source | int) -> Tensor:
    """Standard normal numbers, fp32 on the CPU, of ``shape``.

    Args:
        shape: (B, …), one entry of the first axis a video.
        source: a seed (video i uses ``seed + i``); one generator for the whole batch, which
            advances; or one generator a video.

    Raises:
        UsageError: a generator of another device, or not as many generators as videos.
    """
    if isinstance(source, int):
        source = make_generators(source, shape[0])
    if isinstance(source, torch.Generator):
        return _draw(shape, source)
    if len(source) != shape[0]:
        raise UsageError(
            "sampling-generators",
            f"{len(source)} generators were given for {shape[0]} videos.",
            "Pass one generator a video, or a single one.",
        )
    one = (1, *shape[1:])
    if len(source) < WORTH_THREADS:
        return torch.cat([_draw(one, generator) for generator in source])
    with ThreadPoolExecutor(min(len(source), os.cpu_count() or 1)) as pool:
        return torch.cat(list(pool.map(lambda generator: _draw(one, generator), source)))


def _draw(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    if generator.device.type != "cpu":
        raise UsageError(
            "sampling-generator-device",
            f"The generator is on {generator.device}; noise is drawn on the CPU.",
            'Make it with torch.Generator("cpu").',
        )
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)
