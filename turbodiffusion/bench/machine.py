"""What a number was measured on. A figure without these facts is not worth keeping."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from turbodiffusion.bootstrap.gpu import read_machine

COMMIT = "TURBODIFFUSION_COMMIT"
"""Names the commit where the source tree has no history, as in a container."""


@dataclass(frozen=True)
class Machine:
    """The machine and the software, as the table's heading and the JSON show them."""

    device: str
    capability: str
    memory_gb: float
    driver: str
    cuda: str
    processor: str
    threads: int
    system: str
    python: str
    torch: str
    triton: str
    commit: str
    date: str
    command: str

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def read(device: torch.device, command: str, commit: str | None = None) -> Machine:
    """The facts about ``device``; ``command`` is what was typed, ``commit`` overrides git."""
    name, capability, memory = processor(), "", _ram()
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        name, memory = facts.name, facts.total_memory
        capability = f"{facts.major}.{facts.minor}"
    driver = read_machine().driver if device.type == "cuda" else ()
    return Machine(
        device=name,
        capability=capability,
        memory_gb=round(memory / 1e9, 1),
        driver=".".join(map(str, driver)),
        cuda=torch.version.cuda or "",
        processor=processor(),
        threads=torch.get_num_threads(),
        system=platform.platform(terse=True),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_version("triton"),
        commit=commit or os.environ.get(COMMIT, "") or _git(),
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        command=command,
    )


def processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _ram() -> int:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git() -> str:
    """Short name of the checked-out commit, ``+`` where files differ from it; else ``unknown``."""
    here = Path(__file__).parent
    try:
        head, changes = (
            subprocess.run(
                ["git", *words], cwd=here, capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for words in (
                ["rev-parse", "--short=10", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+" if changes else "")
