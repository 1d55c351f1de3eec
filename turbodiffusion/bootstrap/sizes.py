"""How large the downloads are, before they start.

Figures for torch 2.13.0 and the pins of ``lock.txt``, read from the package index's own file
sizes and the directories of the wheels (Python 3.12). CUDA builds of the PyTorch wheel index are
estimates: on Linux from the equal build of the default index, on Windows from published sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from turbodiffusion.bootstrap.tags import Build, Machine

MB = 1_000_000


@dataclass(frozen=True)
class Size:
    """Bytes to download and bytes on disk afterwards."""

    download: int
    disk: int

    def __add__(self, other: Size) -> Size:
        return Size(self.download + other.download, self.disk + other.disk)

    @property
    def text(self) -> str:
        return f"about {self.download_text} to download" if self.download else "nothing to download"

    @property
    def download_text(self) -> str:
        return _human(self.download)

    @property
    def disk_text(self) -> str:
        return _human(self.disk)


TORCH_CPU = {
    "Linux": Size(192 * MB, 699 * MB),
    "Windows": Size(122 * MB, 466 * MB),
    "Darwin": Size(111 * MB, 471 * MB),
}
TORCH_CUDA = {
    "Linux": Size(2730 * MB, 4725 * MB),  # with its CUDA libraries and Triton
    "Windows": Size(2700 * MB, 5000 * MB),  # libraries inside the wheel; 1.8 to 3.5 GB by tag
}
PACKAGES = {
    "Linux": Size(101 * MB, 400 * MB),
    "Windows": Size(86 * MB, 350 * MB),
    "Darwin": Size(67 * MB, 330 * MB),
}
EXTRAS = {"test": Size(35 * MB, 150 * MB)}


def of_torch(machine: Machine, build: Build, default_index: bool = False) -> Size:
    """torch with the libraries it brings; the default index has CUDA builds only on Linux."""
    system = machine.system if machine.system in TORCH_CPU else "Linux"
    cuda = build.tag != "cpu" or (default_index and system == "Linux")
    return TORCH_CUDA[system] if cuda and system in TORCH_CUDA else TORCH_CPU[system]


def of_packages(machine: Machine, extras: Sequence[str]) -> Size:
    """Everything else, with the extras asked for."""
    size = PACKAGES.get(machine.system, PACKAGES["Linux"])
    for extra in extras:
        size += EXTRAS[extra]
    return size


def _human(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
