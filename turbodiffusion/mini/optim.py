"""AdamW (and Muon) on float32 master weights of a low-precision module, with a moving average.

The module computes in the precision it ships in, so training sees the roundings of inference;
updates smaller than a bf16 step would be lost there, so they accumulate in float32 masters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from turbodiffusion.mini.muon import Muon
from turbodiffusion.mini.recipe import Stage


def learning_rate(stage: Stage, step: int, progress: float) -> float:
    """Warm-up over ``stage.warmup`` steps, constant, then linear to zero over ``stage.decay``."""
    warm = min(1.0, (step + 1) / max(1, stage.warmup))
    cool = min(1.0, max(0.0, (1.0 - progress) / stage.decay))
    return stage.lr * warm * cool


class MasterOptimizer:
    """Optimiser over named parameters of any float dtype.

    ``ema`` holds the moving average of the masters. Gradients are averaged over the processes of
    ``torch.distributed`` when it is initialised; every process then makes the same update.

    Args:
        parameters: what learns.
        stage: rates, decay, clipping.
        matrices: names of 2-D parameters that Muon updates instead of AdamW.
        matrix_lr: Muon's learning rate when AdamW's is ``stage.lr``; both follow one schedule.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        stage: Stage,
        matrices: Collection[str] = (),
        matrix_lr: float = 0.0,
    ) -> None:
        named = list(parameters)
        self.stage = stage
        self.names = [name for name, _ in named]
        self.live = [p for _, p in named]
        self.master = [p.detach().float().clone() for p in self.live]
        self.ema = [m.clone() for m in self.master]
        self.grads = [torch.zeros_like(m) for m in self.master]
        for m, g in zip(self.master, self.grads, strict=True):
            m.grad = g
        inside = [i for i, name in enumerate(self.names) if name in matrices]
        self.muon = Muon([self.master[i] for i in inside], weight_decay=stage.weight_decay)
        self.muon_grads = [self.grads[i] for i in inside]
        self.matrix_share = matrix_lr / stage.lr if stage.lr else 0.0
        # Vectors (norms, biases) are not decayed.
        rest = [m for i, m in enumerate(self.master) if i not in inside]
        decayed = [m for m in rest if m.ndim > 1]
        plain = [m for m in rest if m.ndim <= 1]
        self.adam = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": stage.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=stage.lr, betas=stage.betas, fused=True,
        )  # fmt: skip
        self.steps = 0

    @torch.no_grad()
    def step(self, lr: float) -> Tensor:
        """Apply the gradients; returns their norm (0-d). A non-finite norm skips the update.

        Nothing here waits for the device: the fused kernel takes the clipping factor and the
        verdict on the norm as tensors, by the attributes that gradient scalers use.
        """
        for p, g in zip(self.live, self.grads, strict=True):
            if p.grad is None:
                g.zero_()
        pairs = [
            (g, p.grad) for p, g in zip(self.live, self.grads, strict=True) if p.grad is not None
        ]
        torch._foreach_copy_([g for g, _ in pairs], [grad for _, grad in pairs])
        if dist.is_initialized():
            flat = torch.cat([g.flatten() for g in self.grads])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            parts = flat.split([g.numel() for g in self.grads])
            torch._foreach_copy_(
                self.grads, [part.view_as(g) for part, g in zip(parts, self.grads, strict=True)]
            )
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.grads)))
        finite = torch.isfinite(norm)
        divisor = (norm / self.stage.clip).clamp_min(1.0)
        self.adam.grad_scale = torch.where(finite, divisor, 1.0)  # type: ignore[attr-defined]
        self.adam.found_inf = (~finite).float()  # type: ignore[attr-defined]
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        self.muon.step(self.muon_grads, lr * self.matrix_share, finite)
        for p in self.live:
            p.grad = None
        torch._foreach_copy_([p.detach() for p in self.live], self.master)
        # A young average follows quickly, so that the start does not linger in it.
        decay = min(self.stage.ema, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.ema, self.master, 1.0 - decay)
        self.steps += 1
        return norm

    def average(self) -> dict[str, Tensor]:
        """The moving average as a state dict in float32."""
        return dict(zip(self.names, self.ema, strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {
            "master": dict(zip(self.names, self.master, strict=True)),
            "ema": self.average(),
            "adam": self.adam.state_dict(),
            "muon": self.muon.state(),
            "steps": self.steps,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state exactly.

        Raises:
            KeyError, ValueError: it belongs to other parameters.
        """
        saved = {name: value.shape for name, value in state["master"].items()}
        own = {name: m.shape for name, m in zip(self.names, self.master, strict=True)}
        if saved != own:
            raise ValueError(
                f"{len(saved)} tensors saved, {len(own)} of other shapes or names here"
            )
        for name, m, e, p in zip(self.names, self.master, self.ema, self.live, strict=True):
            m.copy_(state["master"][name])
            e.copy_(state["ema"][name])
            p.copy_(m)
        self.adam.load_state_dict(state["adam"])
        self.muon.load(state["muon"])
        self.steps = state["steps"]

    @torch.no_grad()
    def restore_average(self) -> None:
        """Put the moving average into the live module; the end of a stage."""
        torch._foreach_copy_([p.detach() for p in self.live], self.ema)

    @torch.no_grad()
    def restart(self) -> None:
        """Take the live weights as the beginning: masters and average follow them."""
        torch._foreach_copy_(self.master, [p.detach() for p in self.live])
        torch._foreach_copy_(self.ema, self.master)
