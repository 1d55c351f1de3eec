"""Which NVIDIA GPUs and driver this machine has, without any package.

``nvidia-smi`` knows everything and comes with every driver; where it is missing, or too old to
tell the capability, the driver library itself is asked through ``ctypes``. Both run in a child
process with a time limit, because a wedged driver hangs whoever calls it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from turbodiffusion.bootstrap import libcuda
from turbodiffusion.bootstrap.tags import Gpu, Machine

Found = tuple[tuple[Gpu, ...], tuple[int, ...]]

TIMEOUT = 15.0  # seconds; a cold driver without persistence mode takes up to ten

SMI_PLACES = (
    "/usr/lib/wsl/lib/nvidia-smi",
    r"C:\Windows\System32\nvidia-smi.exe",
    r"C:\Program Files\NVIDIA Corporation\NVSMI\nvidia-smi.exe",
)

FIRST_DRIVER = ((13000, (580,)), (12080, (570,)), (12060, (560,)), (12000, (525, 60, 13)))
"""The oldest driver behind a CUDA version of the driver library, where its own is not told."""


def read_machine() -> Machine:
    """This machine as the tag rule wants it (:func:`turbodiffusion.bootstrap.tags.choose`)."""
    system, arch = platform.system(), platform.machine()
    found = None if system == "Darwin" else _from_smi() or _from_library()
    gpus, driver = found or ((), ())
    return Machine(selected(gpus, os.environ.get("CUDA_VISIBLE_DEVICES")), driver, system, arch)


def parse_smi(text: str) -> Found | None:
    """GPUs and driver from ``name, uuid, compute_cap, driver_version`` lines, or None.

    Lines without a capability (an error text, ``[N/A]``) make the whole answer unusable.
    """
    gpus: list[Gpu] = []
    driver: tuple[int, ...] = ()
    for line in text.strip().splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 4 or not re.fullmatch(r"\d+\.\d+", fields[2]):
            return None
        major, minor = fields[2].split(".")
        gpus.append(Gpu(fields[0], (int(major), int(minor)), fields[1]))
        driver = numbers(fields[3])
    return (tuple(gpus), driver) if gpus and driver else None


def selected(
    gpus: tuple[Gpu, ...], visible: str | None, order: str | None = None
) -> tuple[Gpu, ...]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves, by index or UUID.

    ``order`` is ``CUDA_DEVICE_ORDER``, this process's own by default.

    A list that hides everything is a choice for one run, not for the installation, and indices
    are ambiguous when the driver orders unequal GPUs by speed: both leave the list as it is.
    """
    wanted = [word.strip() for word in (visible or "").split(",") if word.strip()]
    order = os.environ.get("CUDA_DEVICE_ORDER", "") if order is None else order
    if all(word.isdigit() for word in wanted):
        unequal = len({gpu.capability for gpu in gpus}) > 1
        if unequal and order != "PCI_BUS_ID":
            return gpus
        return tuple(gpus[int(word)] for word in wanted if int(word) < len(gpus)) or gpus
    kept = [gpu for gpu in gpus if gpu.uuid and any(gpu.uuid.startswith(word) for word in wanted)]
    return tuple(kept) or gpus


def smi_program() -> str | None:
    """Path of ``nvidia-smi``, which WSL and some Windows drivers keep off the search path."""
    return shutil.which("nvidia-smi") or next((p for p in SMI_PLACES if os.path.isfile(p)), None)


def _from_smi() -> Found | None:
    program = smi_program()
    if not program:
        return None
    query = "--query-gpu=name,uuid,compute_cap,driver_version"
    output = run([program, query, "--format=csv,noheader"])
    return parse_smi(output) if output else None


def _from_library() -> Found | None:
    """The same through libcuda, asked in a child of this interpreter."""
    output = run([sys.executable, "-I", libcuda.__file__])
    try:
        answer = json.loads(output) if output else None
    except ValueError:
        return None
    if not answer or not answer["gpus"]:
        return None
    gpus = tuple(Gpu(name, (major, minor)) for name, major, minor, *_ in answer["gpus"])
    return gpus, kernel_driver() or driver_behind(answer["cuda"])


def driver_behind(cuda: int) -> tuple[int, ...]:
    """The oldest driver whose library reports CUDA version ``cuda`` (1000·major + 10·minor)."""
    return next((driver for version, driver in FIRST_DRIVER if cuda >= version), (0,))


def kernel_driver() -> tuple[int, ...]:
    """The version of the loaded kernel module on Linux, else ()."""
    try:
        return numbers(Path("/sys/module/nvidia/version").read_text("ascii"))
    except (OSError, ValueError):
        return ()


def numbers(text: str) -> tuple[int, ...]:
    """Every number of a version text, such as ``535.183.01``."""
    return tuple(int(part) for part in re.findall(r"\d+", text))


def run(command: list[str], timeout: float = TIMEOUT) -> str:
    """Standard output of ``command``, or an empty string when it fails or takes too long."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
