"""Machines that are not here, as facts. Each helper starts from a healthy machine of its kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from turbodiffusion.doctor.facts import (
    GB,
    Compiler,
    Driver,
    Facts,
    Folder,
    GpuFacts,
    Memory,
    Platform,
    Python,
    Torch,
    Triton,
    Windows,
)

GIB = 2**30

GPUS = {
    "GTX 1080": ("NVIDIA GeForce GTX 1080", (6, 1), 8),
    "V100": ("Tesla V100-SXM2-32GB", (7, 0), 32),
    "T4": ("Tesla T4", (7, 5), 15),
    "RTX 2080": ("NVIDIA GeForce RTX 2080", (7, 5), 8),
    "A100": ("NVIDIA A100-SXM4-80GB", (8, 0), 80),
    "RTX 3060": ("NVIDIA GeForce RTX 3060", (8, 6), 12),
    "Orin": ("Orin", (8, 7), 32),
    "RTX 4090": ("NVIDIA GeForce RTX 4090", (8, 9), 24),
    "H100": ("NVIDIA H100 80GB HBM3", (9, 0), 80),
    "B200": ("NVIDIA B200", (10, 0), 180),
    "B300": ("NVIDIA B300", (10, 3), 275),
    "RTX 5090": ("NVIDIA GeForce RTX 5090", (12, 0), 32),
    "GB10": ("NVIDIA GB10", (12, 1), 119),
    "K80": ("Tesla K80", (3, 7), 12),
    "MX150": ("NVIDIA GeForce MX150", (6, 1), 2),
}

TRITON = {"2.10": "3.6.0", "2.11": "3.6.0", "2.12": "3.7.1", "2.13": "3.7.1", "2.14": "3.8.0"}


def gpu(name: str, **changes: Any) -> GpuFacts:
    full, capability, gib = GPUS[name]
    one = GpuFacts(full, capability, f"GPU-{name.replace(' ', '-')}", gib * GIB, (gib - 1) * GIB)
    return replace(one, **changes)


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part)


def torch(build: str, **changes: Any) -> Torch:
    """``2.13.0+cu130`` as its files tell it; what importing it tells is a change."""
    number, _, tag = build.partition("+")
    wants = TRITON.get(".".join(number.split(".")[:2]), "")
    return replace(Torch(number, tag, wants if tag != "cpu" else ""), **changes)


def folders(free: float = 200 * GB, **changes: float) -> tuple[Folder, ...]:
    places = {
        "environment": "/home/u/turbo/.venv",
        "models": "/home/u/turbo/checkpoints",
        "hub cache": "/home/u/.cache/huggingface",
        "compiled kernels": "/home/u/.triton/cache",
        "temporary files": "/tmp",
    }
    return tuple(
        Folder(what, path, int(changes.get(what.split()[0], free))) for what, path in places.items()
    )


def linux(
    names: str = "", driver: str = "580.65.06", build: str = "2.13.0+cu130", **changes: Any
) -> Facts:
    """A Linux machine with GPUs by name, separated by commas, and a torch build or ""."""
    found = tuple(gpu(name.strip()) for name in names.split(",") if name.strip())
    known = torch(build) if build else Torch()
    facts = Facts(
        platform=Platform(nvidia_hardware=len(found)),
        python=Python(
            executable="/home/u/turbo/.venv/bin/python", environment="/home/u/turbo/.venv"
        ),
        driver=Driver(True, "", 0, 13000, version(driver), version(driver)) if found else Driver(),
        gpus=found,
        torch=known,
        triton=Triton((("triton", known.wants_triton),)) if known.wants_triton else Triton(),
        folders=folders(),
        memory=Memory(64 * GB, 60 * GB),
        root="/home/u/turbo",
    )
    return replace(facts, **changes)


def windows(
    names: str = "", driver: str = "591.74", build: str = "2.13.0+cu132", **changes: Any
) -> Facts:
    """A Windows 11 machine; Triton is triton-windows of the release that belongs to torch."""
    base = linux(names, driver, build)
    release = {"3.6.0": "3.6.0.post26", "3.7.1": "3.7.1.post27", "3.8.0": "3.8.0.post29"}
    there = release.get(base.torch.wants_triton, "")
    facts = replace(
        base,
        platform=Platform("Windows", "11", "AMD64", "", "", nvidia_hardware=0),
        python=Python(
            executable="C:\\turbo\\.venv\\Scripts\\python.exe", environment="C:\\turbo\\.venv"
        ),
        driver=replace(base.driver, module=()),
        torch=replace(base.torch, wants_triton=""),
        triton=Triton((("triton-windows", there),)) if there else Triton(),
        compiler=Compiler(found="", bundled=bool(there)),
        windows=Windows(),
        shell="powershell",
        root="C:\\turbo",
    )
    return replace(facts, **changes)


def wsl(
    names: str = "", driver: str = "591.74", build: str = "2.13.0+cu132", **changes: Any
) -> Facts:
    """Ubuntu inside WSL2."""
    base = linux(names, driver, build)
    release = "6.6.87.2-microsoft-standard-WSL2"
    platform = Platform(release=release, wsl=True, wsl_gpu=True, wsl_library=bool(names))
    facts = replace(base, platform=platform, driver=replace(base.driver, module=()))
    return replace(facts, **changes)


def container(names: str = "", build: str = "2.13.0+cu130", **changes: Any) -> Facts:
    """A Debian container as root."""
    platform = Platform(distribution="debian", container="docker", nvidia_devices=bool(names))
    return replace(replace(linux(names, build=build), platform=platform), **changes)
