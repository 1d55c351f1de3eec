"""Will it fit, with which settings, and how long will it take: before any weight is read.

A run uses the text encoder, the networks and the autoencoder one after the other. For each phase
the planner adds up weights and activations (:mod:`.work`) under a way of placing them, and takes
the first way that fits the memory that is free:

1. everything stays on the GPU;
2. *swap*: only the network in use is there;
3. *tile*: the autoencoder works on overlapping tiles;
4. *quantise*: the 8-bit file of the network, where there is one to choose;
5. *stream*: the blocks of a network pass through the GPU while it computes.

Swapping and streaming give the same result, tiling the same to a small tolerance; quantised
weights are another checkpoint. Streaming comes last because it reads all weights at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from turbodiffusion.memory.gpus import GIB, Gpu
from turbodiffusion.memory.tiling import TILES
from turbodiffusion.memory.work import Shape, Sizes, Work, decode_work, encode_work, phases
from turbodiffusion.models.cards import Attention

CONTEXT = int(0.6 * GIB)
"""Bytes of GPU memory that the driver and its libraries take beside tensors (assumption)."""

SLACK = 1.1
"""Factor on activations for what the allocator cannot use and convolutions borrow (assumption)."""

HOST_BASE = int(0.5 * GIB)
"""Bytes of a run of the smallest model on the CPU build of torch, libraries and all; 490 MiB
measured by ``generate --monitor``."""

HOST_CUDA = int(1.0 * GIB)
"""What the libraries of a CUDA build take of the host in addition (assumption)."""

PUBLISHED_SHARE = 0.35
"""Share of a GPU's datasheet rates that a run reaches where nobody measured it: the released
implementation reaches 0.25, 0.37 and 0.38 on an RTX 5090 (1.3B, 14B 480p, 14B 720p; published
times over the same arithmetic)."""

LINK_SHARE = 0.8
"""Share of the datasheet's PCIe rate that a copy from pinned memory reaches (assumption)."""


@dataclass(frozen=True)
class Machine:
    """Where it shall run.

    Attributes:
        name: of the GPU, or of the CPU without one.
        gpu: bytes of GPU memory that are free; 0: it runs on the CPU.
        ram: bytes of host memory that are free. cores: of the CPU.
        rates: datasheet of the GPU, None if it is unknown.
        unified: GPU and host share the memory: what a phase needs of both must fit in ``gpu``.
    """

    name: str
    gpu: int
    ram: int
    rates: Gpu | None = None
    cores: int = 1
    unified: bool = False


@dataclass(frozen=True)
class Layout:
    """One file layout of a network that could be used: its sizes and whether it is 8-bit."""

    sizes: Sizes
    quantised: bool


@dataclass(frozen=True)
class Settings:
    """What a run is told to do.

    Attributes:
        swap: keep only the network in use on the GPU. tile: side in latent cells, 0: whole.
        streamed: phase → blocks that stay on the GPU while the others pass through.
    """

    quantised: bool
    swap: bool = False
    tile: int = 0
    streamed: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """Prediction for one phase: bytes at its peak, seconds (None: unknown) and their basis,
    ``measured`` (on this device, with this model) or ``estimate``."""

    name: str
    gpu: int
    host: int
    seconds: float | None
    basis: str


@dataclass(frozen=True)
class Plan:
    """The answer. ``steps`` are sentences on what was given up for the memory; ``problem`` says
    why nothing fits, or is empty."""

    machine: Machine
    settings: Settings
    phases: tuple[Phase, ...]
    steps: tuple[str, ...] = ()
    problem: str = ""

    @property
    def fits(self) -> bool:
        return not self.problem

    @property
    def gpu_peak(self) -> int:
        """Bytes of the most demanding phase on the GPU."""
        return max(phase.gpu for phase in self.phases)

    @property
    def host_peak(self) -> int:
        """Bytes of the most demanding phase on the host."""
        return max(phase.host for phase in self.phases)

    @property
    def seconds(self) -> float | None:
        """Of all phases; None if one is unknown."""
        known = [p.seconds for p in self.phases if p.seconds is not None]
        return sum(known) if len(known) == len(self.phases) else None


Share = Callable[[str, bool], tuple[float, str] | None]
"""(phase, quantised) → share of the datasheet rates that was measured, and its basis."""


def plan(
    shape: Shape,
    attention: Attention,
    layouts: Sequence[Layout],
    machine: Machine,
    share: Share = lambda phase, quantised: None,
) -> Plan:
    """The first way of placing a run that fits, or the smallest one with its ``problem``.

    Args:
        layouts: the files to choose from, the preferred one first.
        share: what was measured before; without an answer :data:`PUBLISHED_SHARE` is used.
    """
    if not machine.gpu:
        options = [_on_cpu(shape, attention, layout, machine, share) for layout in layouts]
        return next((made for made in options if made.fits), options[-1])
    tried: list[Plan] = []
    for streaming in (False, True):
        placed = [_place(shape, attention, x, machine, streaming, share) for x in layouts]
        if fitting := [made for made in placed if made.fits]:
            best = min(fitting, key=_network_bytes_streamed)  # the preferred layout among equals
            if best.settings.quantised and not layouts[0].quantised:
                steps = ("8-bit weights: the others are too large for this GPU", *best.steps)
                best = replace(best, steps=steps)
            return best
        tried += placed
    return min(tried, key=lambda made: made.gpu_peak)


def _network_bytes_streamed(made: Plan) -> int:
    streamed = "denoise" in made.settings.streamed
    return next(p.host for p in made.phases if p.name == "denoise") if streamed else 0


def _place(
    shape: Shape, attention: Attention, layout: Layout, machine: Machine, streaming: bool,
    share: Share,
) -> Plan:  # fmt: skip
    """One layout on the GPU: everything there, else swapped, tiled and perhaps streamed."""
    sizes, experts = layout.sizes, len(shape.card.experts)
    work = phases(shape, sizes, attention, layout.quantised)
    everything = sizes.text + sizes.vae + experts * sizes.dit
    if all(_peak(everything, w.activations) <= machine.gpu for w in work):
        peaks = {w.name: _peak(everything, w.activations) for w in work}
        return _result(Settings(layout.quantised), work, peaks, machine, sizes, experts, share, ())
    peaks = {w.name: _peak(w.weights, w.activations) for w in work}
    steps = ["swap: only the network in use stays on the GPU"]
    tile, streamed = 0, {}
    for w in work:
        if peaks[w.name] <= machine.gpu:
            continue
        if w.name in ("decode", "condition"):
            tile, peaks[w.name] = _tile(shape, sizes, w.name, machine.gpu)
        elif streaming and w.block:
            streamed[w.name], peaks[w.name] = _stream(w, machine.gpu)
    if tile:
        cell = shape.card.vae.spatial_stride
        steps.append(f"tile: the autoencoder works on tiles of {tile * cell} pixels")
    for name, stay in streamed.items():
        total = next(w.blocks for w in work if w.name == name)
        what = "text encoder" if name == "text" else "network"
        steps.append(f"stream: {total - stay} of {total} blocks of the {what} pass through the GPU")
    settings = Settings(layout.quantised, True, tile, streamed)
    return _result(settings, work, peaks, machine, sizes, experts, share, tuple(steps))


def _peak(weights: int, activations: int) -> int:
    return CONTEXT + weights + int(SLACK * activations)


def _tile(shape: Shape, sizes: Sizes, name: str, free: int) -> tuple[int, int]:
    """The largest tile that fits (else the smallest) and its peak."""
    cell = shape.card.vae.spatial_stride
    cost = decode_work if name == "decode" else encode_work
    for tile in TILES:
        pixels = min(tile * cell, shape.width) * min(tile * cell, shape.height)
        peak = _peak(sizes.vae, cost(shape, sizes, pixels).activations)
        if peak <= free:
            break
    return tile, peak


def _stream(work: Work, free: int) -> tuple[int, int]:
    """How many blocks can stay; two more are there at a time, one in use and the next."""
    base = work.weights - work.blocks * work.block
    stay = work.blocks - 2
    while stay > 0 and _peak(base + (stay + 2) * work.block, work.activations) > free:
        stay -= 1
    stay = max(stay, 0)
    return stay, _peak(base + (stay + 2) * work.block, work.activations)


def _result(
    settings: Settings, work: list[Work], peaks: dict[str, int], machine: Machine, sizes: Sizes,
    experts: int, share: Share, steps: tuple[str, ...],
) -> Plan:  # fmt: skip
    out = []
    for w in work:
        pinned = 0
        if w.name in settings.streamed:
            pinned = (w.blocks - settings.streamed[w.name]) * w.block
        copies = experts if w.name == "denoise" else 1
        moved = w.weights * copies + pinned * (w.passes - 1)
        seconds, basis = _seconds(w, moved, machine, settings.quantised, share)
        out.append(Phase(w.name, peaks[w.name], HOST_BASE + HOST_CUDA + pinned, seconds, basis))

    def need(phase: Phase) -> int:
        return phase.gpu + (phase.host if machine.unified else 0)

    worst = max(out, key=need)
    problem = ""
    if need(worst) > machine.gpu:
        kind = "shared" if machine.unified else "GPU"
        problem = (f"the phase {worst.name!r} needs {gib(need(worst))} of {kind} memory, and "
                   f"{gib(machine.gpu)} are free")  # fmt: skip
    elif (host := max(p.host for p in out)) > machine.ram:
        problem = f"{gib(host)} of host memory are needed, and {gib(machine.ram)} are free"
    return Plan(machine, settings, tuple(out), steps, problem)


def _on_cpu(
    shape: Shape, attention: Attention, layout: Layout, machine: Machine, share: Share
) -> Plan:
    sizes = layout.sizes
    weights = sizes.text + sizes.vae + len(shape.card.experts) * sizes.dit
    out = []
    for w in phases(shape, sizes, attention, layout.quantised):
        seconds, basis = _seconds(w, 0, machine, layout.quantised, share)
        host = HOST_BASE + weights + int(SLACK * w.activations)
        out.append(Phase(w.name, 0, host, seconds, basis))
    peak = max(p.host for p in out)
    problem = ""
    if peak > machine.ram:
        problem = f"{gib(peak)} of memory are needed, and {gib(machine.ram)} are free"
    return Plan(machine, Settings(layout.quantised), tuple(out), (), problem)


def floor_seconds(work: Work, machine: Machine) -> float | None:
    """Seconds at the full datasheet rates; for a CPU at 1e9 operations a core and second."""
    if machine.gpu == 0:
        return (work.eight + work.sixteen) / (machine.cores * 1e9)
    rates = machine.rates
    if rates is None:
        return None
    return work.eight / rates.int8 + work.sixteen / rates.bf16 + work.traffic / rates.bandwidth


def _seconds(
    work: Work, moved: int, machine: Machine, quantised: bool, share: Share
) -> tuple[float | None, str]:
    """Computing and copying; the copies of streamed blocks hide behind the computing."""
    floor = floor_seconds(work, machine)
    known = share(work.name, quantised)
    if floor is None or (known is None and not machine.gpu):
        return None, "unknown"
    reached, basis = known or (PUBLISHED_SHARE, "estimate")
    seconds = floor / reached
    if machine.rates and not machine.unified:
        first = min(moved, work.weights) / (machine.rates.link * LINK_SHARE)
        again = (moved - min(moved, work.weights)) / (machine.rates.link * LINK_SHARE)
        seconds = first + max(seconds, again)
    return seconds, basis


def gib(count: float) -> str:
    """``13.5 GiB``."""
    return f"{count / GIB:.1f} GiB"
