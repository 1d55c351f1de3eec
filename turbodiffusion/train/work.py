"""Operations of a training step, from the network's sizes: what utilisation is measured against.

A multiply-add counts as two operations. Only matrix products are counted, the attention's among
them; the backward pass costs twice the forward one. Calls of the teacher and of simulations are
work that a step needs, and count, all those without gradient as dense. Recomputed activations are
not, so checkpointing lowers the utilisation, as it should.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from turbodiffusion.memory.gpus import gpu
from turbodiffusion.models.cards import Attention, DiTConfig
from turbodiffusion.train.config import TrainConfig
from turbodiffusion.train.consistency import Continuous, Discrete, Following
from turbodiffusion.train.distribution import DistributionMatching
from turbodiffusion.train.presets import AlignmentLoss, DistillLoss, Loss
from turbodiffusion.train.stages import attention_of


def forward_operations(config: DiTConfig, tokens: int, attention: Attention) -> float:
    """One network call on one video of ``tokens`` tokens."""
    d, f, s, rows = config.dim, config.ffn_dim, config.text_len, tokens
    linears = rows * (6 * d * d + 2 * d * f) + 2 * s * d * d  # q k v o, cross q o, FFN; cross k v
    cross = 2 * rows * s * d
    if attention.kind == "dense":
        own = 2.0 * rows * rows * d
    else:  # kept keys exactly, all keys through the linear state, and its projection
        own = 2.0 * rows * rows * d * attention.mean_topk + 3.0 * rows * d * config.head_dim
    ends = rows * d * config.patch_volume * (config.in_dim + config.out_dim)
    text = s * (config.text_dim * d + d * d)
    time = config.freq_dim * d + 7 * d * d
    return 2.0 * (config.num_layers * (linears + cross + own) + ends + text + time)


@dataclass(frozen=True)
class Calls:
    """Network calls for one sample of a step; a mean where steps differ.

    Args:
        dense: without gradient. learning: with one. tangent: with the derivative along a direction.
    """

    dense: float = 0.0
    learning: float = 0.0
    tangent: float = 0.0

    def __add__(self, other: Calls) -> Calls:
        return Calls(*(a + b for a, b in zip(_numbers(self), _numbers(other), strict=True)))

    def times(self, factor: float) -> Calls:
        return Calls(*(factor * a for a in _numbers(self)))


def _numbers(calls: Calls) -> tuple[float, float, float]:
    return calls.dense, calls.learning, calls.tangent


def calls_of(loss: Loss) -> Calls:
    """What a stage's mean step calls; of a distillation after its warm-up."""
    if isinstance(loss, AlignmentLoss):
        return Calls(dense=1, learning=1).times(_guided(loss))
    if not isinstance(loss, DistillLoss):
        return Calls(learning=1)
    student = Calls()
    if loss.consistency.scale > 0:
        student += _consistency_calls(loss.consistency)
    if loss.matching is None or loss.matching.scale == 0:
        return student
    simulated = Calls(dense=(loss.matching.steps - 1) / 2)  # before the last call, of 1 … steps
    student += simulated + Calls(dense=1 + _guided(loss.matching), learning=1)  # fake and teacher
    critic = simulated + Calls(dense=1, learning=1)
    return (student + critic.times(loss.every - 1)).times(1 / loss.every)


def _consistency_calls(loss: Continuous | Discrete | Following) -> Calls:
    if isinstance(loss, Following):
        return Calls(dense=1, learning=1)
    if isinstance(loss, Discrete):
        return Calls(dense=loss.skip * _guided(loss) + 1, learning=1)
    derivative = {"full": Calls(tangent=1), "semi": Calls(dense=1, tangent=1),
                  "difference": Calls(dense=2)}[loss.derivative]  # fmt: skip
    return derivative + Calls(dense=_guided(loss), learning=1)


def _guided(loss: AlignmentLoss | Continuous | Discrete | DistributionMatching) -> int:
    return 1 if loss.guidance == 1 else 2


def step_operations(config: TrainConfig, dit: DiTConfig, tokens: int) -> float:
    """One sample of a mean step. A derivative costs its call twice, and attention's share of it
    once more: six products instead of two."""
    dense = forward_operations(dit, tokens, Attention("dense"))
    learning = forward_operations(dit, tokens, attention_of(config))
    own = 4.0 * dit.num_layers * tokens**2 * dit.dim
    calls = calls_of(config.loss)
    return calls.dense * dense + calls.learning * 3 * learning + calls.tangent * (2 * dense + own)


def peak(device: torch.device) -> float | None:
    """Dense bf16 operations a second of the GPU, by its datasheet; None if it is not known."""
    if device.type != "cuda":
        return None
    found = gpu(torch.cuda.get_device_name(device))
    return found.bf16 if found else None
