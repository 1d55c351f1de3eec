"""AdamW on the float32 shards of one network, with a warm-up and a norm that guards.

A step whose gradient norm is not finite changes neither weights nor moments, so one broken batch
costs one step. Norms are those of the whole network, over all processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
"""State keyed by parameter names, whatever the number of processes."""


@dataclass(frozen=True)
class OptimSettings:
    """One network's optimiser. ``warmup`` steps lead linearly from lr/10⁶ to ``lr``, which stays
    until it falls linearly to 0 over the last ``decay`` of the run (0: never); gradients above the
    norm ``clip`` are scaled down to it (0: never)."""

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    eps: float = 1e-8
    warmup: int = 100
    decay: float = 0.0
    clip: float = 0.0


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> dict[str, dict[str, Any]]:
    """``matrices``, which decay, and ``vectors`` (norms, biases), which do not."""
    groups: dict[str, dict[str, Any]] = {
        "matrices": {"params": [], "weight_decay": weight_decay},
        "vectors": {"params": [], "weight_decay": 0.0},
    }
    for _, parameter in named:
        if parameter.requires_grad:
            groups["matrices" if parameter.ndim > 1 else "vectors"]["params"].append(parameter)
    return groups


class Optimizer:
    """AdamW over what learns in ``network``."""

    def __init__(self, network: nn.Module, settings: OptimSettings) -> None:
        self.network, self.settings = network, settings
        groups = parameter_groups(network.named_parameters(), settings.weight_decay)
        self.adam = torch.optim.AdamW(
            [group for group in groups.values() if group["params"]],
            lr=settings.lr, betas=settings.betas, eps=settings.eps, foreach=True,
        )  # fmt: skip

    def lr(self, step: int, progress: float = 0.0) -> float:
        """Rate of the update that follows ``step`` others; ``progress`` is the part of the run that
        is over, from 0 to 1."""
        warmup, decay = self.settings.warmup, self.settings.decay
        warm = min(1.0, step / warmup) if warmup else 1.0
        cool = min(1.0, (1.0 - progress) / decay) if decay else 1.0
        return self.settings.lr * (1e-6 + (1 - 1e-6) * warm) * cool

    def step(self, lr: float) -> float:
        """Apply the gradients and drop them; returns their norm. Not finite: nothing changes."""
        parameters = [p for group in self.adam.param_groups for p in group["params"]]
        grads = [p.grad for p in parameters if p.grad is not None]
        total = torch.nn.utils.get_total_norm(grads)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        if norm < float("inf"):  # false for NaN as well
            if 0 < self.settings.clip < norm:
                torch._foreach_mul_(grads, self.settings.clip / norm)
            for group in self.adam.param_groups:
                group["lr"] = lr
            self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Moments by parameter name, in shards."""
        return get_optimizer_state_dict(self.network, self.adam, options=FLAT)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_optimizer_state_dict(self.network, self.adam, state, options=FLAT)


class Average:
    """Moving average of a network's float32 shards; ``beta`` is given at each update."""

    def __init__(self, network: nn.Module) -> None:
        self.live = dict(network.named_parameters())
        self.values = {name: p.detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, beta: float) -> None:
        live: list[Tensor] = [p.detach() for p in self.live.values()]
        torch._foreach_lerp_(list(self.values.values()), live, 1.0 - beta)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average with the live weights; a second call undoes it."""
        for name, parameter in self.live.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(kept)
