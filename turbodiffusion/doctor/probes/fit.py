"""P07, P12, P16: whether driver, kernels and memory of a GPU fit what runs on it."""

from __future__ import annotations

from turbodiffusion.bootstrap.tags import Build
from turbodiffusion.doctor import rules, shell
from turbodiffusion.doctor.facts import GB, Facts
from turbodiffusion.doctor.findings import Finding
from turbodiffusion.doctor.rules import dotted

SMALL_VRAM = 7.5 * GB
SHARED_NEEDED = 101376
"""Bytes of shared memory a block may have on the smallest GPUs our kernels are laid out for."""


def driver_for_cuda(facts: Facts) -> list[Finding]:
    """P07: the driver runs the CUDA that torch was built with, and the GPU."""
    if not rules.gpu_works(facts):
        return [Finding("P07", "skip", "No working GPU.")]
    build = rules.chosen(facts)
    if not isinstance(build, Build):
        return [
            Finding(
                "P07",
                "blocker",
                build.message,
                "A newer driver.",
                "Update the NVIDIA driver.",
                shell.update_driver(facts),
                "DRIVER-TOO-OLD",
            )
        ]
    cuda = rules.cuda_of(facts.torch.tag)
    if cuda is None:
        return [Finding("P07", "skip", "torch is not a CUDA build.")]
    system = "Windows" if facts.platform.system == "Windows" else "Linux"
    floor = rules.FAMILY_FLOOR.get(cuda[0], {}).get(system, ())
    has = rules.driver(facts.driver.version)
    if facts.driver.version < floor:
        return [
            Finding(
                "P07",
                "blocker",
                f"torch {facts.torch.version}+{facts.torch.tag} needs driver "
                f"{rules.driver(floor)}; this one is {has}.",
                f"torch {build.exact}, which this driver runs, or a newer driver.",
                "Install the build of torch that this driver runs.",
                rules.install_torch(facts, "P07"),
                "CUDA-DRIVER-INSUFFICIENT",
                repairable=True,
            )
        ]
    return [Finding("P07", "ok", f"Driver {has} runs CUDA {dotted(cuda)} builds.")]


def shared_memory(facts: Facts) -> list[Finding]:
    """P12: a block gets as much shared memory as the kernels are laid out for."""
    size = facts.torch.shared_memory
    if not size or not rules.wants_triton(facts):
        return [Finding("P12", "skip", "No Triton kernels run here, or torch was not asked.")]
    if size < SHARED_NEEDED:
        return [
            Finding(
                "P12",
                "minor",
                f"A block gets {size} bytes of shared memory.",
                f"{SHARED_NEEDED} bytes.",
                "Use the portable form of the operators if a kernel is refused.",
                shell.assign(facts, "TURBODIFFUSION_BACKEND", "portable"),
                "TRITON-SHARED-MEMORY",
            )
        ]
    return [Finding("P12", "ok", f"{size} bytes of shared memory a block.")]


def video_memory(facts: Facts) -> list[Finding]:
    """P16: how much GPU memory there is, and whether others use it."""
    if not rules.gpu_works(facts):
        return [Finding("P16", "skip", "No working GPU.")]
    findings = []
    for gpu in rules.served(facts):
        if not gpu.total:
            continue
        text = f"{gpu.name} has {gpu.total / 2**30:.1f} GiB, {gpu.free / 2**30:.1f} free"
        if gpu.total < SMALL_VRAM:
            findings.append(
                Finding(
                    "P16",
                    "major",
                    f"{text}.",
                    "8 GiB for the smallest full-size model.",
                    "See what fits.",
                    shell.ours(facts, "plan"),
                    "CUDA-OOM",
                )
            )
        elif gpu.free < gpu.total // 2:
            findings.append(
                Finding(
                    "P16",
                    "minor",
                    f"{text}: other programs hold the rest.",
                    "Most of it free.",
                    "See which programs use it, and close them.",
                    "nvidia-smi",
                    "CUDA-OOM",
                )
            )
        else:
            findings.append(Finding("P16", "ok", f"{text}."))
    return findings or [Finding("P16", "skip", "The driver does not tell the memory.")]
