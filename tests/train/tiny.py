"""Networks small enough to be checked by differences, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from turbodiffusion.train.losses import Batch, Networks

SHAPE = (2, 2, 3, 4)  # of one latent video: channels, frames, height, width
WIDTH = 3


class Smooth(nn.Module):
    """A velocity that depends on latents, time and text, and is smooth in all of them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.5 * torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.mix, self.out = parameter(SHAPE[0], SHAPE[0]), parameter(SHAPE[0], SHAPE[0])
        self.time, self.text = parameter(SHAPE[0]), parameter(WIDTH, SHAPE[0])
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, y: Tensor | None) -> Tensor:
        self.calls.append((x, timestep))
        bias = timestep / 300 * self.time + context.mean(1) @ self.text
        hidden = torch.einsum("bcthw,cd->bdthw", x, self.mix) + bias[..., None, None, None]
        return torch.einsum("bcthw,cd->bdthw", hidden.tanh(), self.out)


class Given(nn.Module):
    """A velocity that is any function of x and τ; it has a weight so that it has a dtype."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, y: Tensor | None) -> Tensor:
        return self.function(x, timestep[..., None, None, None] / 1000) + 0 * self.weight


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(size: int = 3, seed: int = 5) -> Batch:
    return Batch(
        randn(size, *SHAPE, seed=seed),
        randn(size, 4, WIDTH, seed=seed + 1),
        randn(1, 4, WIDTH, seed=seed + 2),
    )


def networks() -> Networks:
    return Networks(Smooth(1), Smooth(2), Smooth(3))
