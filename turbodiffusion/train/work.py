"""Operations of a training step, from the network's sizes: what utilisation is measured against.

A multiply-add counts as two operations. Only matrix products are counted, the attention's among
them; the backward pass costs twice the forward one. Recomputed activations are not useful work and
are not counted, so checkpointing lowers the utilisation, as it should.
"""

from __future__ import annotations

import torch

from turbodiffusion.memory.gpus import gpu
from turbodiffusion.models.cards import Attention, DiTConfig


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


def training_operations(forward: float) -> float:
    """Forward and backward pass."""
    return 3.0 * forward


def peak(device: torch.device) -> float | None:
    """Dense bf16 operations a second of the GPU, by its datasheet; None if it is not known."""
    if device.type != "cuda":
        return None
    found = gpu(torch.cuda.get_device_name(device))
    return found.bf16 if found else None
