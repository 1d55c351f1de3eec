"""Checkpoints of the real layout with random weights, for tests and benchmarks.

The released files are gigabytes and not always at hand; their names, shapes and types are known
exactly. These files have all three, and values small enough for a finite forward pass, so reading,
converting, planning and loading can be tried on any machine. Written as a stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from turbodiffusion.models.cards import CARDS, DiTConfig, ModelCard
from turbodiffusion.weights.detect import network_spec
from turbodiffusion.weights.infer import Config
from turbodiffusion.weights.spec import QUANT_BLOCK, TensorSpec
from turbodiffusion.weights.write import write_checkpoint

CHUNK = 4 * 1024 * 1024  # elements drawn at a time


def write_synthetic(
    card: str | ModelCard | Config,
    path: str | Path,
    quantized: bool = False,
    seed: int = 0,
    *,
    role: str = "dit",
    sla: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write random weights in the released layout; ``.pth`` or ``.safetensors`` by extension.

    Args:
        card: a card, its name, or the configuration of one network (any sizes).
        quantized: int8 linears with their scales instead of bf16 ones (DiT only).
        seed: same seed, same file.
        role: which network of a card: ``dit``, ``vae`` or ``text_encoder``.
        sla: with the projection of the linear attention branch (DiT only).
    """
    path = Path(path)
    if isinstance(card, str):
        card = CARDS[card]
    if isinstance(card, ModelCard):
        networks: dict[str, Config] = {"dit": card.dit, "vae": card.vae, "text_encoder": card.text}
        config = networks[role]
    else:
        config = card
    spec = network_spec(config, quantized, sla and isinstance(config, DiTConfig))
    numbers = {name: number for number, name in enumerate(spec)}

    def source(name: str) -> Iterator[memoryview]:
        return _random(name, spec[name], (seed << 20) + numbers[name])

    write_checkpoint(path, spec, source, metadata)
    return path


def _random(name: str, spec: TensorSpec, seed: int) -> Iterator[memoryview]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, spec.dtype)
    low, high = _range(name, spec)
    left = spec.elements
    while left:
        chunk = torch.empty(min(CHUNK, left), dtype=dtype)
        if dtype == torch.int8:
            chunk.random_(-127, 128, generator=generator)
        else:
            chunk.uniform_(low, high, generator=generator)
        left -= len(chunk)
        yield chunk.view(torch.uint8).numpy().data


def _range(name: str, spec: TensorSpec) -> tuple[float, float]:
    """Bounds of the uniform values: gains near one, linears that keep the variance."""
    fan_in = max(1, spec.elements // spec.shape[0])
    if name.endswith(".scale"):
        # int8 values spread to ±127; a row has as many tiles as the scale has columns.
        bound = (3 / (spec.shape[1] * QUANT_BLOCK)) ** 0.5 / 127
        return 0.9 * bound, bound
    if name.endswith(".gamma") or ("norm" in name and name.endswith(".weight")):
        return 0.9, 1.1
    if name.endswith(".bias") or "pos_embedding" in name:
        return -0.02, 0.02
    return -((3 / fan_in) ** 0.5), (3 / fan_in) ** 0.5
