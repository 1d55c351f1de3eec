"""P02–P04: the driver and the GPUs."""

from __future__ import annotations

from turbodiffusion.bootstrap import tags
from turbodiffusion.doctor import rules, shell
from turbodiffusion.doctor.facts import Facts, GpuFacts
from turbodiffusion.doctor.findings import Finding
from turbodiffusion.doctor.rules import dotted, named

INIT_CODES = {
    34: (
        "is a stub for building, not a driver",
        "Take the folder of stubs off the library path.",
        "LIBCUDA-NOT-FOUND",
    ),
    100: ("shows no GPU", "", "NO-GPU-VISIBLE"),
    101: ("refuses the device number", "", "NO-GPU-VISIBLE"),
    802: (
        "is not ready (the fabric manager of this server is not running)",
        "",
        "CUDA-UNKNOWN-ERROR",
    ),
    803: (
        "and the kernel module have different versions",
        "Restart the computer so that the new module is loaded.",
        "DRIVER-LIBRARY-MISMATCH",
    ),
    804: (
        "is a compatibility library that this GPU does not support",
        "Take the folder 'compat' off the library path.",
        "FORWARD-COMPAT-804",
    ),
    999: (
        "failed without a reason, often after sleep or an update",
        "Restart the computer.",
        "CUDA-UNKNOWN-ERROR",
    ),
}
OLDEST = (5, 0)
TRY = 'generate "a red circle moving right on a black background"'


def driver_library(facts: Facts) -> list[Finding]:
    """P02: the driver library loads and initialises."""
    platform, driver = facts.platform, facts.driver
    if platform.system == "Darwin":
        return [Finding("P02", "skip", "macOS has no NVIDIA driver.")]
    if not driver.library:
        return [_no_library(facts)]
    if driver.init in (0, None):
        level = "CUDA " + dotted((driver.cuda // 1000, driver.cuda % 1000 // 10))
        return [Finding("P02", "ok", f"The driver library answers ({level}).")]
    words, fix, cause = INIT_CODES.get(
        driver.init or 0, ("failed", "Restart the computer.", "CUDA-UNKNOWN-ERROR")
    )
    found = f"The driver library {words} (cuInit says {driver.init})."
    return [
        Finding(
            "P02",
            "blocker",
            found,
            "cuInit returns 0.",
            fix or "See whether the system lists the GPU.",
            _init_command(facts, driver.init or 0),
            cause,
        )
    ]


def _init_command(facts: Facts, code: int) -> str:
    windows = facts.shell == "powershell"
    if code in (34, 804):
        return shell.unset(facts, "LD_LIBRARY_PATH")
    if code == 802:
        return "sudo systemctl enable --now nvidia-fabricmanager"
    if code in (100, 101):
        return "nvidia-smi -L"
    if facts.platform.wsl:
        return shell.restart_wsl(facts)
    return "Restart-Computer" if windows else "sudo reboot"


def _no_library(facts: Facts) -> Finding:
    """No driver: how bad that is depends on whether an NVIDIA GPU is in the machine."""
    platform = facts.platform
    if platform.container:
        there = platform.nvidia_hardware > 0
        return Finding(
            "P02",
            "blocker" if there else "major",
            "The container was started without a GPU"
            + (f"; the computer has {platform.nvidia_hardware}." if there else "."),
            "The container toolkit puts the driver into the container.",
            "Start the container again with its GPUs.",
            "docker run --rm --gpus all -it IMAGE"
            if platform.container != "podman"
            else "podman run --rm --device nvidia.com/gpu=all -it IMAGE",
            "DOCKER-NO-GPU-RUNTIME",
        )
    if platform.wsl:
        return Finding(
            "P02",
            "major",
            "WSL has no NVIDIA driver library in /usr/lib/wsl/lib.",
            "The driver of Windows puts it there; none is installed inside WSL.",
            "Install the NVIDIA driver in Windows, then stop WSL with `wsl.exe --shutdown`.",
            shell.update_driver(facts),
            "LIBCUDA-NOT-FOUND",
        )
    if platform.nvidia_hardware:
        return Finding(
            "P02",
            "blocker",
            "An NVIDIA GPU is in this computer, but its driver is not installed.",
            "The NVIDIA driver.",
            "Install the driver.",
            shell.update_driver(facts),
            "DRIVER-NOT-FOUND",
        )
    return Finding("P02", "skip", "No NVIDIA driver is installed.")


def driver_version(facts: Facts) -> list[Finding]:
    """P03: its version, and that library and kernel module agree."""
    driver = facts.driver
    if not driver.version:
        return [Finding("P03", "skip", "No driver, no version.")]
    if driver.module and driver.module != driver.version:
        return [
            Finding(
                "P03",
                "blocker",
                f"The loaded kernel module is {rules.driver(driver.module)}, the library "
                f"{rules.driver(driver.version)}.",
                "One version: the driver was updated while the old module was in use.",
                "Restart the computer.",
                "sudo reboot",
                "DRIVER-LIBRARY-MISMATCH",
            )
        ]
    return [Finding("P03", "ok", f"Driver {rules.driver(driver.version)}.")]


def gpus(facts: Facts) -> list[Finding]:
    """P04: which GPUs there are, and what each can do."""
    if not facts.gpus:
        return [_no_gpu(facts)]
    findings = []
    left = [gpu for gpu in facts.visible if gpu not in rules.served(facts)]
    for gpu in facts.gpus:
        if gpu not in facts.visible:
            text = f"{named(gpu)} is hidden by CUDA_VISIBLE_DEVICES."
            findings.append(Finding("P04", "info", text))
            continue
        findings.append(_one_gpu(facts, gpu, gpu in left))
        if gpu.compute_mode == "Prohibited":
            findings.append(
                Finding(
                    "P04",
                    "blocker",
                    f"{gpu.name} is set to run no programs (compute mode Prohibited).",
                    "Compute mode Default.",
                    "Allow programs again.",
                    "sudo nvidia-smi -c 0" if facts.shell != "powershell" else "nvidia-smi -c 0",
                )
            )
        if gpu.mig:
            findings.append(Finding("P04", "info", f"{gpu.name} is split into MIG instances."))
    hidden = facts.variables.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1", "none", "NoDevFiles"):
        findings.append(
            Finding(
                "P04",
                "blocker",
                f"CUDA_VISIBLE_DEVICES is {hidden!r}, which hides every GPU.",
                "Unset, or the number of a GPU.",
                "Remove the variable.",
                shell.unset(facts, "CUDA_VISIBLE_DEVICES"),
                "NO-GPU-VISIBLE",
            )
        )
    return findings


def _no_gpu(facts: Facts) -> Finding:
    if facts.platform.nvidia_hardware or facts.driver.init not in (0, None, 100):
        return Finding("P04", "skip", "Not known before the driver works (P02).")
    if facts.platform.container or facts.platform.wsl:
        return Finding("P04", "skip", "No GPU is visible (see P02).")
    return Finding(
        "P04",
        "major",
        "No NVIDIA GPU was found: the embedded model runs, full-size models are impractical.",
        "An NVIDIA GPU with its driver.",
        "Nothing on this computer; try the embedded model.",
        shell.ours(facts, TRY),
    )


def _one_gpu(facts: Facts, gpu: GpuFacts, left_out: bool) -> Finding:
    total = f", {gpu.total / 2**30:.0f} GiB" if gpu.total else ""
    text = f"{named(gpu)}{total}"
    if left_out:
        return Finding(
            "P04",
            "minor",
            f"{text} is left out: no build of torch serves it together with the newer GPUs.",
            "",
            "Choose the newer GPUs.",
            shell.assign(facts, "CUDA_VISIBLE_DEVICES", _newer(facts)),
        )
    if gpu.capability < OLDEST or gpu.capability in tags.EMBEDDED:
        return Finding(
            "P04",
            "major",
            f"{text} stays unused: no published torch has code for it.",
            "A GPU of capability 5.0 or newer that is not an embedded part.",
            "Nothing on this computer; try the embedded model.",
            shell.ours(facts, TRY),
        )
    if gpu.capability < rules.TRITON_FROM:
        reason = (
            "Triton has no products below 8.0"
            if gpu.capability >= (7, 5)
            else "current Triton begins at 7.5"
        )
        return Finding(
            "P04",
            "info",
            f"{text} runs the portable form of every operator: {reason}. Slower, same results.",
        )
    return Finding("P04", "ok", f"{text}.")


def _newer(facts: Facts) -> str:
    """The newer GPUs, by identity where it is known: numbers depend on the driver's order."""
    kept = rules.served(facts)
    return ",".join(gpu.uuid or str(i) for i, gpu in enumerate(facts.gpus) if gpu in kept)
