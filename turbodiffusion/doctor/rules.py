"""What several probes need to know: which torch code runs where, and what comes first.

The choice of a build is that of :mod:`turbodiffusion.bootstrap.tags`; these rules judge a build
that is already installed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from turbodiffusion.bootstrap import tags
from turbodiffusion.bootstrap.tags import Build
from turbodiffusion.bootstrap.torch_source import WHEEL_INDEX
from turbodiffusion.doctor import shell
from turbodiffusion.doctor.facts import Facts, GpuFacts
from turbodiffusion.errors import SetupError

OLDEST_TORCH = (2, 10)
TRITON_FROM = (8, 0)
"""The capability from which our Triton kernels run, as in ``ops/gpu.py``."""

ARCHITECTURES = {
    "cu126": ("50", "60", "70", "75", "80", "86", "90"),
    "cu128": ("75", "80", "86", "90", "100", "120"),
    "cu129": ("75", "80", "86", "90", "100", "120"),
    "cu130": ("75", "80", "86", "90", "100", "120"),
    "cu132": ("75", "80", "86", "90", "100", "120"),
    "cu134": ("75", "80", "86", "90", "100", "120"),
}
"""Code that x86-64 builds hold (torch 2.13), where torch itself could not be asked. Builds for
aarch64 hold none below 8.0; from cu130 also 11.0."""

FAMILY_FLOOR: dict[int, dict[str, tuple[int, ...]]] = {
    11: {"Linux": (450, 80, 2), "Windows": (452, 39)},
    12: {"Linux": (525, 60, 13), "Windows": (528, 33)},
    13: {"Linux": (580,), "Windows": (580,)},
}
"""The oldest driver of a CUDA family: any build of that family runs from it on."""

SUFFIXED = re.compile(r"sm_(\d+)(\d)([af]?)$")


def numbers(text: str) -> tuple[int, ...]:
    """The leading release number of a version: ``2.12.0.dev2026+cu128`` → (2, 12, 0)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def dotted(parts: Sequence[int]) -> str:
    return ".".join(map(str, parts))


def driver(parts: Sequence[int]) -> str:
    """A driver's version as NVIDIA writes it: 580.65.06, 591.74."""
    return ".".join([str(parts[0]), *(f"{part:02d}" for part in parts[1:])]) if parts else "unknown"


def named(gpu: GpuFacts) -> str:
    return f"{gpu.name} (capability {dotted(gpu.capability)})"


def cuda_of(tag: str) -> tuple[int, int] | None:
    """CUDA release of a tag: ``cu128`` → (12, 8); None for other tags."""
    found = re.fullmatch(r"cu(\d+)(\d)", tag)
    return (int(found[1]), int(found[2])) if found else None


def architectures(facts: Facts) -> tuple[str, ...]:
    """Code in the installed torch: its own list, else what its tag is known to hold."""
    if facts.torch.architectures:
        return facts.torch.architectures
    codes = ARCHITECTURES.get(facts.torch.tag, ())
    if facts.machine.arm:
        codes = tuple(c for c in codes if int(c) >= 80)
        codes += ("110",) if facts.torch.tag >= "cu130" else ()
    return tuple(f"sm_{code}" for code in codes)


def covers(capability: tuple[int, int], codes: Sequence[str]) -> str:
    """``"code"`` if compiled code runs, ``"ptx"`` if the driver can compile some, else ``""``.

    Code of X.y runs on X.z with z >= y; embedded parts and code with a suffix only on their own.
    """
    ptx = False
    for code in codes:
        if found := SUFFIXED.match(code):
            own = int(found[1]), int(found[2])
            exact = bool(found[3] == "a") or capability in tags.EMBEDDED or own in tags.EMBEDDED
            if own == capability or (
                not exact and own[0] == capability[0] and own[1] < capability[1]
            ):
                return "code"
        elif found := re.match(r"compute_(\d+)(\d)$", code):
            ptx |= (int(found[1]), int(found[2])) <= capability
    return "ptx" if ptx else ""


def gpu_works(facts: Facts) -> bool:
    """Whether the driver answers and shows a GPU: the probes of torch build on that."""
    return bool(facts.gpus) and facts.driver.init in (0, None)


def chosen(facts: Facts) -> Build | SetupError:
    """The build for this machine, or why there is none before a newer driver."""
    try:
        return tags.choose(facts.machine)
    except SetupError as error:
        return error


def driver_first(facts: Facts) -> bool:
    """Whether nothing about torch can be settled before the driver is updated."""
    return gpu_works(facts) and isinstance(chosen(facts), SetupError)


def served(facts: Facts) -> tuple[GpuFacts, ...]:
    """The GPUs that one build is expected to run on; without code for old ones beside new."""
    modern = tuple(
        g for g in facts.visible if g.capability >= (7, 5) and g.capability not in tags.EMBEDDED
    )
    return modern or facts.visible


def wants_cuda(facts: Facts) -> bool:
    """Whether a CUDA build of torch would do something here."""
    build = chosen(facts)
    return gpu_works(facts) and isinstance(build, Build) and build.tag != "cpu"


def wants_triton(facts: Facts) -> bool:
    """Whether Triton kernels would run: a CUDA torch and a GPU of capability 8.0 or newer."""
    able = any(gpu.capability >= TRITON_FROM for gpu in facts.visible)
    return wants_cuda(facts) and able and facts.torch.tag not in ("", "cpu")


def triton_release(facts: Facts) -> str:
    """The Triton that belongs to the installed torch, as far as it is known."""
    minor = dotted(numbers(facts.torch.version)[:2])
    if facts.platform.system == "Windows":
        return tags.TRITON_WINDOWS.get(minor, "")
    return facts.torch.wants_triton


def install_torch(facts: Facts, probe: str) -> str:
    """The command that installs the right torch: setup where the environment is ours, else pip."""
    build = chosen(facts)
    if facts.python.ours or not isinstance(build, Build):
        return shell.ours(facts, f"setup --fix {probe}")
    wanted = f"torch=={build.exact}"
    return shell.pip(facts, "install", wanted, "--index-url", WHEEL_INDEX + build.tag)
