"""P05, P06, P11, P19, P26: the build of torch, its code for the GPU, and packages beside it."""

from __future__ import annotations

from turbodiffusion.bootstrap import tags
from turbodiffusion.bootstrap.tags import Build
from turbodiffusion.doctor import rules, shell
from turbodiffusion.doctor.facts import Facts
from turbodiffusion.doctor.findings import Finding
from turbodiffusion.doctor.rules import dotted, named, numbers

VISION = {minor: (0, minor + 15) for minor in range(7, 16)}
"""torchvision that belongs to torch 2.MINOR: 0.22 for 2.7, one more for each."""

NEEDED = ("numpy", "av", "safetensors", "tokenizers", "transformers")


def build(facts: Facts) -> list[Finding]:
    """P05: torch is there, imports, and is a build that can use this machine's GPU."""
    torch = facts.torch
    if not torch.version:
        return [_absent(facts)]
    name = f"torch {torch.version}+{torch.tag}"
    if torch.imported is False and torch.error in broken(facts):
        return [Finding("P05", "skip", f"{name} fails because of another package (P19).")]
    if torch.imported is False:
        windows = facts.platform.system == "Windows"
        return [
            Finding(
                "P05",
                "blocker",
                f"{name} cannot be imported: {torch.error}",
                "An import without an error.",
                "Install it again.",
                rules.install_torch(facts, "P05"),
                "WIN-TORCH-DLL" if windows else "",
                repairable=True,
            )
        ]
    if numbers(torch.version) < rules.OLDEST_TORCH:
        return [_wrong(facts, f"{name} is too old.", "torch 2.10 or newer.", "")]
    if torch.tag == "cpu" and rules.wants_cuda(facts):
        found = f"{name} is the CPU build: it does not use {facts.gpus[0].name}."
        return [_wrong(facts, found, "A CUDA build.", "TORCH-CPU-BUILD")]
    notes = []
    if ".dev" in torch.version or "rc" in torch.version:
        notes.append(Finding("P05", "info", f"{name} is a pre-release; it is used as it is."))
    elif numbers(torch.version) > numbers(tags.TESTED_TORCH):
        tested = f"newer than {tags.TESTED_TORCH}, the release the tests run with"
        notes.append(Finding("P05", "info", f"{name} is {tested}."))
    if torch.imported is None and torch.error:
        text = f"{name} was not importable in time: a cold or busy disk. Run this again."
        notes.append(Finding("P05", "info", text))
    if facts.missing:
        notes.append(_missing(facts))
    slow = f", imported in {torch.seconds:.1f} s" if torch.seconds else ""
    return notes or [Finding("P05", "ok", f"{name}{slow}.")]


def broken(facts: Facts) -> set[str]:
    """What needed packages say when they are imported; torch repeats it when it loads them."""
    return {one.error for one in facts.packages if one.error and one.name in NEEDED}


def _absent(facts: Facts) -> Finding:
    build = rules.chosen(facts)
    what = f"torch {build.exact}" if isinstance(build, Build) else "torch"
    return Finding(
        "P05",
        "blocker",
        "torch is not installed yet.",
        f"{what} for this machine.",
        "Set up the environment; the first start of any command does the same.",
        shell.ours(facts, "setup") if facts.python.ours else rules.install_torch(facts, "P05"),
        "TORCH-NOT-INSTALLED",
        repairable=True,
    )


def _missing(facts: Facts) -> Finding:
    ours = facts.python.ours
    return Finding(
        "P05",
        "blocker",
        f"Packages are missing: {', '.join(facts.missing)}.",
        "Everything in requirements/runtime.txt.",
        "Install them.",
        shell.ours(facts, "setup --fix P05")
        if ours
        else shell.pip(facts, "install", *facts.missing),
        repairable=True,
    )


def _wrong(facts: Facts, found: str, wanted: str, cause: str) -> Finding:
    if rules.driver_first(facts):
        return Finding("P05", "info", f"{found} It is replaced after the driver (P07).")
    command = rules.install_torch(facts, "P05")
    fix = "Install the build for this machine."
    return Finding("P05", "blocker", found, wanted, fix, command, cause, repairable=True)


def architecture(facts: Facts) -> list[Finding]:
    """P06: torch holds code for the capability of every GPU that is used."""
    torch = facts.torch
    if torch.tag in ("", "cpu") or not rules.gpu_works(facts):
        return [Finding("P06", "skip", "No CUDA build of torch, or no GPU.")]
    if rules.driver_first(facts):
        return [Finding("P06", "skip", "Settled after the driver (P07).")]
    codes = rules.architectures(facts)
    if not codes:
        return [Finding("P06", "skip", f"The code in builds with tag {torch.tag} is not known.")]
    findings = []
    for gpu in rules.served(facts):
        how = rules.covers(gpu.capability, codes)
        if how == "code":
            findings.append(Finding("P06", "ok", f"torch has code for {named(gpu)}."))
        elif how == "ptx":
            text = f"torch has only PTX for {named(gpu)}: the driver compiles it at the first use."
            findings.append(Finding("P06", "info", text))
        elif _has_build(facts):
            findings.append(
                Finding(
                    "P06",
                    "blocker",
                    f"torch {torch.version}+{torch.tag} has no code for {named(gpu)}.",
                    _wanted(facts),
                    "Install the build that has it.",
                    rules.install_torch(facts, "P06"),
                    "TORCH-SM-NOT-COMPATIBLE",
                    repairable=True,
                )
            )
        else:
            text = f"No published torch has code for {named(gpu)}: it stays unused."
            findings.append(Finding("P06", "major", text, "A GPU of capability 5.0 or newer."))
    return findings


def _has_build(facts: Facts) -> bool:
    build = rules.chosen(facts)
    return isinstance(build, Build) and build.tag != "cpu"


def _wanted(facts: Facts) -> str:
    build = rules.chosen(facts)
    return f"torch {build.exact}." if isinstance(build, Build) else ""


def smoke(facts: Facts) -> list[Finding]:
    """P11: a product on the GPU, through torch and through Triton, compared with numbers."""
    findings = []
    if facts.torch.smoke == "ok":
        findings.append(Finding("P11", "ok", "torch multiplies on the GPU, int8 and fp16."))
    elif facts.torch.smoke:
        findings.append(
            Finding(
                "P11",
                "blocker",
                f"torch fails on the GPU: {facts.torch.smoke}",
                "The numbers of the CPU.",
                "Install torch again.",
                rules.install_torch(facts, "P11"),
                "NO-KERNEL-IMAGE" if "kernel image" in facts.torch.smoke else "",
                repairable=True,
            )
        )
    if facts.triton.smoke == "ok":
        took = f" (compiled and run in {facts.triton.seconds:.1f} s)"
        findings.append(Finding("P11", "ok", f"Triton compiles and adds correctly{took}."))
    elif facts.triton.smoke and rules.wants_triton(facts):
        findings.append(
            Finding(
                "P11",
                "major",
                f"Triton fails on the GPU: {facts.triton.smoke}",
                "A kernel that compiles and adds correctly.",
                "Use the portable form until it works; `doctor --explain` reads the whole message.",
                shell.assign(facts, "TURBODIFFUSION_BACKEND", "portable"),
            )
        )
    return findings or [Finding("P11", "skip", "No GPU to try; --kernels compares on the CPU.")]


def foreign(facts: Facts) -> list[Finding]:
    """P19: other packages of the environment that fail, or do not belong to this torch."""
    findings = []
    there = {package.name: package for package in facts.packages}
    for package in facts.packages:
        if package.error and package.name in NEEDED:
            findings.append(
                Finding(
                    "P19",
                    "blocker",
                    f"{package.name} {package.version} cannot be imported: {package.error}",
                    "An import without an error.",
                    "Install the pinned packages again.",
                    shell.ours(facts, "setup --fix P19")
                    if facts.python.ours
                    else shell.pip(facts, "install", "--force-reinstall", package.name),
                    "NUMPY-ABI" if package.name == "numpy" else "",
                    repairable=True,
                )
            )
        elif package.error:
            text = f"{package.name} {package.version} is broken; it is not needed and not used."
            findings.append(Finding("P19", "info", text))
    vision = there.get("torchvision")
    minor = numbers(facts.torch.version)[1:2]
    if vision and minor and numbers(vision.version)[:2] != VISION.get(minor[0]):
        belongs = dotted(VISION.get(minor[0], (0, 0)))
        findings.append(
            Finding(
                "P19",
                "minor",
                f"torchvision {vision.version} does not belong to torch {facts.torch.version}.",
                f"torchvision {belongs}, or none: it is not used here.",
                "Remove it if no other program needs it.",
                shell.pip(facts, "uninstall", "torchvision"),
            )
        )
    if "pynvml" in there:
        text = "The package pynvml is obsolete and makes torch warn; nvidia-ml-py replaces it."
        findings.append(Finding("P19", "info", text, cause="PYNVML-DEPRECATED"))
    return findings or [Finding("P19", "ok", "No package is in the way.")]


def cudnn(facts: Facts) -> list[Finding]:
    """P26: torch 2.9 and 2.10 with cuDNN before 9.15 use too much memory in the VAE."""
    version = facts.torch.cudnn
    if not version:
        return [Finding("P26", "skip", "No cuDNN was asked.")]
    text = f"cuDNN {version // 10000}.{version // 100 % 100}.{version % 100}"
    if numbers(facts.torch.version)[:2] in ((2, 9), (2, 10)) and version < 91500:
        return [
            Finding(
                "P26",
                "major",
                f"{text} with torch {facts.torch.version}: decoding takes far more memory.",
                "torch 2.11 or newer, or cuDNN 9.15.",
                "Install the build for this machine.",
                rules.install_torch(facts, "P26"),
                "CONV3D-MEMORY-REGRESSION",
                repairable=True,
            )
        ]
    return [Finding("P26", "ok", f"{text}.")]
