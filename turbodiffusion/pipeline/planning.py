"""The planner put to work: this machine, these files, this request.

``plan_files`` is what ``generate`` asks before it loads anything; ``plan_card`` answers for a model
that need not be here, on this machine or on one that is described. Both end in
:func:`turbodiffusion.memory.plan.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from turbodiffusion.errors import CapacityError, UsageError
from turbodiffusion.memory.gpus import GIB, GPUS, gpu
from turbodiffusion.memory.host import cores, free_ram
from turbodiffusion.memory.plan import (
    CONTEXT,
    Layout,
    Machine,
    Plan,
    Share,
    floor_seconds,
    gib,
    plan,
)
from turbodiffusion.memory.work import Shape, Sizes, phases
from turbodiffusion.models.cards import Attention, ModelCard
from turbodiffusion.ops.gpu import obstacle
from turbodiffusion.pipeline.load import pick_device
from turbodiffusion.pipeline.rates import Rate, lookup, recorded, remember
from turbodiffusion.pipeline.request import Request
from turbodiffusion.weights import places
from turbodiffusion.weights.detect import describe
from turbodiffusion.weights.find import Files
from turbodiffusion.weights.header import read_header
from turbodiffusion.weights.spec import dit_spec, spec_bytes, text_spec, vae_spec

FREE_GPU, FREE_HOST = 0.95, 0.85
"""Shares of a described machine's memory that are free: the driver and a desktop use the rest
(assumption; on the machine that is here the free memory is asked for)."""


@dataclass(frozen=True)
class Planned:
    """A plan with what it was made from, for those who show it and learn from the run."""

    plan: Plan
    shape: Shape
    attention: Attention
    layouts: tuple[Layout, ...]

    @property
    def device(self) -> str:
        """The name that measured rates are kept under."""
        return self.plan.machine.name if self.plan.machine.gpu else "cpu"


def this_machine(device: torch.device) -> Machine:
    """What is free here, with ``device`` to compute on."""
    if device.type != "cuda":
        return Machine("CPU", 0, free_ram(), cores=torch.get_num_threads())
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    name = torch.cuda.get_device_name(device)
    known = gpu(name)
    unified = bool(known and known.unified)
    # The context that the planner counts is there already: the question above made it.
    return Machine(
        known.name if known else name, free + held + CONTEXT, free_ram(), known, cores(), unified
    )


def described_machine(name: str, vram: float | None, ram: float | None) -> Machine:
    """A machine that is not here.

    Args:
        name: of the GPU; one that the table does not know needs ``vram``.
        vram, ram: GiB; the table's memory and twice that by default, once where both are one.

    Raises:
        UsageError: an unknown GPU without ``vram``, or a size that is not positive.
    """
    known = gpu(name)
    if known is None and vram is None:
        raise UsageError(
            "plan-gpu",
            f"{name!r} is not in the table of GPUs ({', '.join(GPUS)}).",
            "Add --vram GB to plan by its memory alone.",
        )
    for flag, value in (("--vram", vram), ("--ram", ram)):
        if value is not None and not value > 0:
            raise UsageError("plan-memory", f"{flag} {value:g} is no amount of memory.",
                             "Give GB, such as 24.")  # fmt: skip
    memory = int(vram * GIB) if vram is not None else known.memory if known else 0
    unified = bool(known and known.unified)
    host = int(ram * GIB) if ram is not None else memory if unified else 2 * memory
    if unified:  # one memory, and the system uses the same share of it
        memory = host = int(min(memory, host) * FREE_HOST)
    else:
        memory, host = int(memory * FREE_GPU), int(host * FREE_HOST)
    return Machine(known.name if known else name, memory, host, known, unified=unified)


def shape_of(request: Request, card: ModelCard, device: torch.device | None) -> Shape:
    """The costs of a resolved request; without a device for a GPU that the kernels run on."""
    assert request.width and request.height and request.frames and request.steps
    on_cpu = device is not None and device.type == "cpu"
    form = "triton" if device is None or obstacle(device) is None else "portable"
    return Shape(
        card, request.width, request.height, request.frames, request.steps, request.guided,
        element=4 if on_cpu and card.embedded else 2, form=form,
    )  # fmt: skip


def card_layouts(card: ModelCard, quantised: str, element: int) -> list[Layout]:
    """The layouts of a card that may be chosen: ``auto`` offers both, the plain one first."""
    options = {"auto": (False, True), "yes": (True,), "no": (False,)}[quantised]
    if card.embedded:  # one layout is used: the first that is allowed and here
        known = places.embedded_layouts(card)
        known = tuple(q for q in known if q in options) or known
        options = (next((q for q in known if places.embedded_dit(card, q)), known[0]),)
    return [Layout(_sizes(card, q, element), q) for q in options]


def _sizes(card: ModelCard, quantised: bool, element: int) -> Sizes:
    stored = quantised and element == 2  # in float32, int8 linears are expanded once
    spec = dit_spec(card.dit, stored, sla=not card.embedded)
    block = {k: v for k, v in spec.items() if k.startswith("blocks.0.")}
    text = text_spec(card.text)
    layer = {k: v for k, v in text.items() if k.startswith("blocks.0.")}
    wide = element // 2  # the specifications count bf16
    return Sizes(
        spec_bytes(spec) * wide, spec_bytes(block) * wide, spec_bytes(text) * wide,
        spec_bytes(layer) * wide, spec_bytes(vae_spec(card.vae, "bfloat16")) * wide,
    )  # fmt: skip


def plan_card(
    card: ModelCard, request: Request, machine: Machine, quantised: str = "auto",
    device: torch.device | None = None,
) -> Planned:  # fmt: skip
    """A plan from the card alone. ``device`` is given where ``machine`` is this one."""
    shape = shape_of(request, card, device)
    attention = card.attention
    layouts = card_layouts(card, quantised, shape.element)
    if card.embedded and (files := places.embedded_dit(card, layouts[0].quantised)):
        found = describe(read_header(next(iter(files.values()))))
        attention = _attention(card, found.attention, {})
    return _made(shape, attention, layouts, machine)


def plan_files(
    files: Files, requests: Sequence[Request], flags: dict[str, Any], others: bool = True,
    samples: int = 1,
) -> Planned:  # fmt: skip
    """A plan for the largest of ``requests`` with the files that were found.

    Args:
        flags: ``device``, ``attention`` and ``topk`` count.
        others: the 8-bit files of the same model may be chosen instead, if they are here.
        samples: most videos of one prompt side by side.
    """
    device = pick_device(flags.get("device"))
    card = files.card
    largest = max(requests, key=lambda r: (r.width or 0) * (r.height or 0) * (r.frames or 0))
    shape = replace(shape_of(largest, card, device), samples=samples)
    first = next(iter(files.dit.values()))
    found = describe(read_header(first))
    layout = Layout(_sizes(card, found.quantized, shape.element), found.quantized)
    if not card.embedded:
        scale = found.bytes / layout.sizes.dit
        block = round(layout.sizes.dit_block * scale)
        layout = replace(
            layout, sizes=replace(layout.sizes, dit=found.bytes, dit_block=block)
        )  # a plain Wan file may be float32
    layouts = [layout]
    if others and not layout.quantised and not card.embedded:
        present = places.released_dit(card, True)
        if len(present) == len(card.experts):
            layouts.append(Layout(_sizes(card, True, shape.element), True))
    attention = _attention(card, found.attention, flags)
    return _made(shape, attention, layouts, this_machine(device))


def _attention(card: ModelCard, in_file: str, flags: dict[str, Any]) -> Attention:
    asked = flags.get("attention")
    if isinstance(asked, Attention):
        return asked
    used = card.attention
    if in_file == "dense" or asked in ("dense", "original"):
        return replace(used, kind="dense")
    return replace(used.with_topk(flags.get("topk")), kind=asked or used.kind)


def _made(
    shape: Shape, attention: Attention, layouts: Sequence[Layout], machine: Machine
) -> Planned:
    name = machine.name if machine.gpu else "cpu"
    share: Share = _shares(recorded(), name, shape.card.name, attention.kind)
    made = plan(shape, attention, layouts, machine, share)
    return Planned(made, shape, attention, tuple(layouts))


def _shares(rates: list[Rate], device: str, card: str, attention: str) -> Share:
    def share(phase: str, quantised: bool) -> tuple[float, str] | None:
        found = lookup(rates, device, card, phase, quantised, attention)
        if found is None and phase == "condition":  # the other half of the same autoencoder
            found = lookup(rates, device, card, "decode", quantised, attention)
            return found and (found[0], "estimate")
        return found

    return share


def require_fit(planned: Planned) -> None:
    """Refuse a run that cannot work.

    Raises:
        CapacityError: nothing fits, with what would.
    """
    made = planned.plan
    if made.fits:
        return
    card = planned.shape.card
    hint = "Use a smaller --resolution or fewer --frames"
    if not made.settings.quantised and not card.embedded:
        hint += f", or the 8-bit weights: turbodiffusion download {card.name} --quantised yes"
    raise CapacityError(
        "plan-too-large",
        f"{card.name} at {planned.shape.width}x{planned.shape.height}, {planned.shape.frames} "
        f"frames, does not fit: {made.problem}.",
        f"{hint}. `turbodiffusion plan` shows the figures, --no-plan tries all the same.",
    )


def describes(planned: Planned, request: Request, samples: int) -> bool:
    """Whether a plan is the one of this very run, and not of a larger one beside it."""
    shape = planned.shape
    return (shape.width, shape.height, shape.frames, shape.steps, shape.guided, shape.samples) == (
        request.width, request.height, request.frames, request.steps, request.guided, samples,
    )  # fmt: skip


def learn(planned: Planned, quantised: bool, seconds: dict[str, float]) -> list[Rate]:
    """Record what a run reached, for later plans; a streamed or tiled run teaches nothing.

    Args:
        seconds: by phase, as a run reports them.
    """
    made = planned.plan
    if made.settings.streamed or made.settings.tile:
        return []
    layout = next((x for x in planned.layouts if x.quantised == quantised), planned.layouts[0])
    rates, card = [], planned.shape.card
    for work in phases(planned.shape, layout.sizes, planned.attention, quantised):
        floor, spent = floor_seconds(work, made.machine), seconds.get(work.name, 0.0)
        if floor and spent > 0:
            rates.append(
                Rate(planned.device, card.name, work.name, quantised,
                     planned.attention.kind, round(floor / spent, 5))
            )  # fmt: skip
    remember(rates)
    return rates


def summary(planned: Planned) -> str:
    """One line: peaks and time."""
    made = planned.plan
    parts = []
    if made.machine.gpu:
        parts.append(f"{gib(made.gpu_peak)} of {gib(made.machine.gpu)} GPU memory")
    parts.append(f"{gib(made.host_peak)} of host memory")
    if made.seconds is not None:
        basis = {phase.basis for phase in made.phases}
        about = "" if basis == {"measured"} else " (estimate)"
        parts.append(f"about {duration(made.seconds)} a video{about}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """``0.4 s``, ``35 s``, ``18 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
