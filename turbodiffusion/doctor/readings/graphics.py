"""The driver and the GPUs, asked of ``nvidia-smi`` and of the driver library in children."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

from turbodiffusion.bootstrap import gpu, libcuda
from turbodiffusion.doctor.child import Child, run
from turbodiffusion.doctor.facts import Driver, GpuFacts

FIELDS = (
    "name,uuid,compute_cap,driver_version,memory.total,memory.free,compute_mode,"
    "mig.mode.current,driver_model.current,pcie.link.gen.current,pcie.link.width.current,"
    "pcie.link.gen.max,pcie.link.width.max"
)
MIB = 2**20

Found = tuple[tuple[GpuFacts, ...], tuple[int, ...]]


def read_gpus() -> Found:
    """Every GPU the driver lists, hidden ones too, and the driver's version."""
    program = gpu.smi_program()
    if not program:
        return (), ()
    output = gpu.run([program, f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"], 8.0)
    return parse(output)


def parse(text: str) -> Found:
    """GPUs and driver from the lines of ``nvidia-smi``; lines without a capability are left out."""
    found: list[GpuFacts] = []
    version: tuple[int, ...] = ()
    for line in text.strip().splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != len(FIELDS.split(",")) or not re.fullmatch(r"\d+\.\d+", fields[2]):
            continue
        name, uuid, capability, driver, total, free, mode, mig, model, *link = fields
        major, minor = capability.split(".")
        version = gpu.numbers(driver)
        found.append(
            GpuFacts(
                name,
                (int(major), int(minor)),
                uuid,
                _mebibytes(total),
                _mebibytes(free),
                mode,
                mig == "Enabled",
                model if model in ("WDDM", "TCC", "MCDM") else "",
                "{}x{} of {}x{}".format(*link) if all(w.isdigit() for w in link) else "",
            )
        )
    return tuple(found), version


def _mebibytes(text: str) -> int:
    return int(text) * MIB if text.isdigit() else 0


def read_library() -> tuple[Driver, tuple[GpuFacts, ...]]:
    """Whether the driver library loads, what ``cuInit`` says, and the GPUs it counts."""
    answer = run(sys.executable, Child(Path(libcuda.__file__), limit=8.0))
    if "library" not in answer:
        return Driver(error=answer.get("error", "")), ()
    driver = Driver(
        bool(answer["library"]),
        answer["error"],
        answer["init"],
        answer["cuda"],
        module=gpu.kernel_driver(),
    )
    listed = tuple(
        GpuFacts(name, (major, minor), total=memory)
        for name, major, minor, memory in answer["gpus"]
    )
    return driver, listed


def combine(
    listed: Found, library: tuple[Driver, tuple[GpuFacts, ...]]
) -> tuple[tuple[GpuFacts, ...], Driver]:
    """nvidia-smi knows more; where it is missing, the driver library serves, with the version of
    the kernel module or the one its CUDA release implies."""
    gpus, version = listed
    driver, counted = library
    gpus = gpus or counted
    if not version and gpus:
        version = driver.module or gpu.driver_behind(driver.cuda)
    return gpus, replace(driver, version=version)
