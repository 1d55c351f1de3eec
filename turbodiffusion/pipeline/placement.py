"""How a pipeline is laid out in memory: what a plan says, and the way down when that was too much.

``apply`` sets what :mod:`turbodiffusion.memory.plan` chose. ``with_ladder`` runs a phase and,
should the memory not suffice after all, takes one step down, says so and runs the phase again:
smaller tiles for the autoencoder, fewer blocks on the GPU for the other networks. What is left then
is another checkpoint or a smaller video, which the error says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from turbodiffusion.errors import out_of_memory
from turbodiffusion.memory.plan import Settings
from turbodiffusion.memory.tiling import TILES
from turbodiffusion.models.dit import WanDiT

if TYPE_CHECKING:
    from turbodiffusion.pipeline.stages import Stages

T = TypeVar("T")


def apply(pipe: Stages, settings: Settings) -> None:
    """Lay ``pipe`` out as a plan says. On the CPU everything stays where it is."""
    if pipe.device.type == "cpu":
        return
    pipe.residency.swap = settings.swap
    pipe.tile = settings.tile
    for phase, stay in settings.streamed.items():
        for module, blocks in _networks(pipe, phase):
            pipe.residency.stream(module, blocks, stay)


def with_ladder(pipe: Stages, phase: str, run: Callable[[], T], note: Callable[[str], None]) -> T:
    """``run()``, again after each step down as long as it runs out of memory.

    Args:
        phase: ``text``, ``condition``, ``denoise`` or ``decode``.
        note: told which step was taken.
    """
    while True:
        try:
            return run()
        except Exception as error:
            if out_of_memory(error) is None:
                raise
            step = step_down(pipe, phase)
            if step is None:
                raise
            note(f"out of memory in the phase {phase!r}: {step}")
        # Outside the handler the failed attempt's tensors are gone.
        if pipe.device.type == "cuda":
            torch.cuda.empty_cache()


def step_down(pipe: Stages, phase: str) -> str | None:
    """Need less memory for ``phase``; the step as a sentence, None if there is none left."""
    on_gpu = pipe.device.type != "cpu"
    if on_gpu and not pipe.residency.swap:
        pipe.residency.swap = True
        for module in pipe.residency.modules:
            pipe.residency.release(module)
        return "now only the network in use stays on the GPU"
    if phase in ("decode", "condition"):
        smaller = [tile for tile in TILES if tile < (pipe.tile or TILES[0] + 1)]
        if not smaller:
            return None
        pipe.tile = smaller[0]
        return f"now tiles of {pipe.tile * pipe.card.vae.spatial_stride} pixels"
    if not on_gpu:
        return None
    stay = -1
    for module, blocks in _networks(pipe, phase):
        now = pipe.residency.staying(module)
        if now == 0:
            return None
        stay = (len(blocks) if now is None else now) // 2
        pipe.residency.stream(module, blocks, stay)
    return f"now {stay} blocks stay on the GPU and the others pass through"


def _networks(pipe: Stages, phase: str) -> list[tuple[nn.Module, Sequence[nn.Module]]]:
    """The networks of a phase with the blocks that can be streamed."""
    if phase == "text":
        return [(pipe.text_encoder, pipe.text_encoder.layers)]
    experts: list[WanDiT] = list(pipe.experts.values())
    return [(dit, list(dit.blocks)) for dit in experts]
