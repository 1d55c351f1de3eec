"""Which build of torch suits a machine: a pure rule over capability, driver and system.

PyTorch publishes one wheel per CUDA release (its *tag*: ``cpu``, ``cu126``, ``cu130``, …). A
driver runs builds up to its own CUDA family, a GPU runs builds that hold code for its capability,
so both are needed to choose: the newest tag a driver allows may have no code for an old GPU, and
the tag a GPU had at its launch may be too old for a new one.

Code for capability X.y runs on X.z with z >= y, but embedded parts run only their own code and
nothing below 12.0 runs on 12.x. Builds hold (torch 2.13): cu126 5.0–9.0, cu129 and later 7.5–12.0
on x86-64; on aarch64 cu126 8.0 and 9.0, cu129 also 10.0 and 12.0, cu130 and later also 11.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from turbodiffusion.errors import SetupError

TESTED_TORCH = "2.13.0"
"""The release the test suite runs with; every tag but cu128 is taken from it."""

CU128_TORCH = "2.11.0"
"""The last release with a cu128 build, for the drivers 570 to 579."""

OLD_DRIVER_TORCH = "2.10.0"
"""The last release whose build on the default package index runs below driver 580 (CUDA 12)."""

TRITON_WINDOWS = {
    "2.10": "3.6.0.post26",
    "2.11": "3.6.0.post26",
    "2.12": "3.7.1.post27",
    "2.13": "3.7.1.post27",
    "2.14": "3.8.0.post29",
}
"""``triton-windows`` for a minor of torch: the same Triton minor as torch declares on Linux."""

KNOWN = ("cpu", "cu126", "cu128", "cu129", "cu130", "cu132")
"""Tags that a user may ask for."""

EMBEDDED = {(5, 3), (6, 2), (7, 2), (8, 7), (10, 1)}
"""Capabilities of embedded parts: no published build holds their code."""

SLOW = "Full-size models are impractical on a CPU; the embedded model runs."


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU: its name, compute capability and place in the PCI order."""

    name: str
    capability: tuple[int, int]
    uuid: str = ""


@dataclass(frozen=True)
class Machine:
    """What the rule looks at. ``driver`` is the NVIDIA driver such as (570, 86, 15), or ()."""

    gpus: tuple[Gpu, ...] = ()
    driver: tuple[int, ...] = ()
    system: str = "Linux"
    arch: str = "x86_64"

    @property
    def arm(self) -> bool:
        return self.arch.lower() in ("aarch64", "arm64")


@dataclass(frozen=True)
class Build:
    """A release of torch, the tag of its wheel, and why this one, in sentences for the user."""

    torch: str
    tag: str
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> str:
        """The version as the PyTorch wheel index names it, e.g. ``2.13.0+cu130``."""
        return f"{self.torch}+{self.tag}"

    @property
    def untagged(self) -> str:
        """The same build from the default index, where file names carry no tag."""
        return f"{self.torch}:{self.tag}"

    @property
    def triton_windows(self) -> str:
        """The release of ``triton-windows`` that goes with this build."""
        return TRITON_WINDOWS[self.torch.rpartition(".")[0]]


def choose(machine: Machine) -> Build:
    """The build for ``machine``.

    Raises:
        SetupError: the GPU needs a newer driver than it has (``setup-driver-old``).
    """
    if machine.system == "Darwin":
        return Build(TESTED_TORCH, "cpu", ("macOS has the CPU build only. " + SLOW,))
    if not machine.gpus:
        return Build(TESTED_TORCH, "cpu", ("No NVIDIA GPU was found. " + SLOW,))
    gpus, notes = _served(machine.gpus)
    smallest = min(gpus, key=lambda gpu: gpu.capability)
    largest = max(gpus, key=lambda gpu: gpu.capability)
    if reason := _without_code(smallest, machine):
        return Build(TESTED_TORCH, "cpu", (*notes, f"{reason} The CPU build is taken. {SLOW}"))
    if smallest.capability < (7, 5):
        _need(machine, smallest, _cuda12_floor(machine))
        slow = f"{smallest.name} has no Triton kernels (they start at capability 7.5): slow path."
        return Build(TESTED_TORCH, "cu126", (*notes, slow))
    if largest.capability >= (10, 0):
        return _blackwell(machine, largest, notes)
    if machine.driver >= (580,):
        return Build(TESTED_TORCH, "cu130", notes)
    _need(machine, smallest, _cuda12_floor(machine))
    return Build(TESTED_TORCH, "cu126", notes)


def _served(gpus: Sequence[Gpu]) -> tuple[list[Gpu], tuple[str, ...]]:
    """The GPUs one build can serve: those without Triton kernels yield to newer ones."""
    modern = [gpu for gpu in gpus if gpu.capability >= (7, 5) and gpu.capability not in EMBEDDED]
    if not modern or len(modern) == len(gpus):
        return list(gpus), ()
    left = ", ".join(gpu.name for gpu in gpus if gpu not in modern)
    return modern, (f"The build is chosen without {left}: it would need another one.",)


def _without_code(gpu: Gpu, machine: Machine) -> str:
    """Why no published build holds code for ``gpu``, or an empty string."""
    name = f"{gpu.name} (capability {_dotted(gpu.capability)})"
    if gpu.capability < (5, 0) or gpu.capability in EMBEDDED:
        return f"No published torch has code for {name}."
    if machine.arm and (gpu.capability < (8, 0) or machine.system == "Windows"):
        return f"No published torch has code for {name} on {machine.system} {machine.arch}."
    return ""


def _blackwell(machine: Machine, gpu: Gpu, notes: tuple[str, ...]) -> Build:
    """Capability 10.0 and above: CUDA 13 from driver 580, else the last CUDA 12 that knows it."""
    if machine.driver >= (580,):
        return Build(TESTED_TORCH, "cu132", notes)
    if gpu.capability[0] == 11:
        _need(machine, gpu, (580,))
    if gpu.capability[1] > 0 or machine.arm:  # 10.3, 12.1 and aarch64 came with CUDA 12.9
        _need(machine, gpu, (575,))
        return Build(TESTED_TORCH, "cu129", notes)
    _need(machine, gpu, (570,))
    older = f"Driver {_dotted(machine.driver)} is below 580, so torch {CU128_TORCH} is taken."
    return Build(CU128_TORCH, "cu128", (*notes, older))


def _cuda12_floor(machine: Machine) -> tuple[int, ...]:
    """The oldest driver that runs CUDA 12 builds."""
    return (528, 33) if machine.system == "Windows" else (525, 60, 13)


def _need(machine: Machine, gpu: Gpu, floor: tuple[int, ...]) -> None:
    if machine.driver < floor:
        has = _dotted(machine.driver) or "unknown"
        raise SetupError(
            "setup-driver-old",
            f"The NVIDIA driver is {has}; {gpu.name} (capability {_dotted(gpu.capability)}) "
            f"needs {_dotted(floor)} or newer.",
            "Update the NVIDIA driver, or set TURBODIFFUSION_TORCH=cpu to go on without the GPU.",
        )


def default_index(build: Build, machine: Machine) -> Build:
    """What the default package index offers instead of ``build`` when the wheel index is away.

    On Linux its torch is a CUDA build (13.0 since 2.11, 12.8 in 2.10), on Windows and macOS it
    is the CPU build; its file names carry no tag.
    """
    if machine.system != "Linux":
        lost = () if build.tag == "cpu" else ("It has only the CPU build: the GPU stays unused.",)
        return Build(TESTED_TORCH, "cpu", lost)
    if build.tag == "cpu":
        return Build(TESTED_TORCH, "cu130", ("It has only the CUDA build, which runs on the CPU.",))
    old = [gpu.name for gpu in machine.gpus if gpu.capability < (7, 5)]
    notes = (f"It has no code for {old[0]}: that GPU stays unused.",) if old else ()
    if machine.driver >= (580,):
        return Build(TESTED_TORCH, "cu130", notes)
    driver = f"driver {_dotted(machine.driver)}" if machine.driver else "drivers below 580"
    older = f"Its last build for {driver} is torch {OLD_DRIVER_TORCH}."
    return Build(OLD_DRIVER_TORCH, "cu128", (older, *notes))


def parse(text: str) -> Build:
    """A build the user asked for through ``TURBODIFFUSION_TORCH``, e.g. ``cpu`` or ``cu126``."""
    if text not in KNOWN:
        raise SetupError(
            "setup-torch-tag",
            f"TURBODIFFUSION_TORCH is {text!r}; it may be {', '.join(KNOWN)}.",
            "Set it to one of these, or remove it to let the machine decide.",
        )
    return Build(CU128_TORCH if text == "cu128" else TESTED_TORCH, text)


def _dotted(parts: Sequence[int]) -> str:
    return ".".join(str(part) for part in parts)
