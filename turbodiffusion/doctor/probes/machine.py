"""P01, P17, P18, P23–P25: the system, Python, variables, Windows, containers, build tools."""

from __future__ import annotations

from turbodiffusion.doctor import shell
from turbodiffusion.doctor.facts import Facts
from turbodiffusion.doctor.findings import Finding
from turbodiffusion.doctor.rules import dotted, numbers

OLDEST_GLIBC = (2, 28)
OLDEST_RUNTIME = (14, 42)
NOT_NEEDED = ("nvcc", "Visual Studio", "Conda", "flash-attn")

HARMFUL = {
    "CUDA_LAUNCH_BLOCKING": "makes every kernel wait, for debugging",
    "TORCH_USE_CUDA_DSA": "adds checks to kernels, for debugging",
    "TRITON_INTERPRET": "runs Triton kernels in an interpreter, thousands of times slower",
    "TRITON_ALWAYS_COMPILE": "compiles every kernel anew at every start",
    "CUDA_CACHE_DISABLE": "compiles PTX anew at every start",
    "TRITON_PTXAS_PATH": "replaces Triton's own assembler",
    "TRITON_OVERRIDE_ARCH": "compiles kernels for another GPU than this one",
}
"""Variables that slow down or break a run when they are left set by mistake."""


def platform(facts: Facts) -> list[Finding]:
    """P01: a system that torch is published for."""
    one = facts.platform
    kind = " in WSL" if one.wsl else f" in a {one.container} container" if one.container else ""
    text = f"{one.system} {one.release} {one.arch}{kind}".replace("  ", " ")
    if one.system == "Linux" and one.libc.startswith("musl"):
        return [
            Finding(
                "P01",
                "blocker",
                f"{text} uses musl; torch is published for glibc.",
                f"glibc {dotted(OLDEST_GLIBC)} or newer.",
                "Use a distribution with glibc, for example in a container.",
                "docker run --rm --gpus all -it python:3.12-slim bash",
                "GLIBC-TOO-OLD",
            )
        ]
    libc = numbers(one.libc.removeprefix("glibc "))
    if one.system == "Linux" and libc and libc < OLDEST_GLIBC:
        return [
            Finding(
                "P01",
                "blocker",
                f"{text} has glibc {dotted(libc)}.",
                f"glibc {dotted(OLDEST_GLIBC)} or newer.",
                "Use a newer system, for example in a container.",
                "docker run --rm --gpus all -it python:3.12-slim bash",
                "GLIBC-TOO-OLD",
            )
        ]
    return [Finding("P01", "ok", f"{text}.")]


def python(facts: Facts) -> list[Finding]:
    """P17: a full 64-bit Python in range, and the state of its environment."""
    one = facts.python
    name = f"Python {dotted(one.version)}, {one.bits} bit"
    wanted = "64-bit Python 3.10 to 3.13."
    install = shell.install_python(facts)
    if not (3, 10) <= one.version[:2] <= (3, 13) or one.bits != 64:
        fix = "Install Python 3.12 and start with that."
        cause = "PIP-NO-TORCH-FOR-PYTHON"
        return [Finding("P17", "blocker", f"{name}.", wanted, fix, install, cause)]
    if one.kind == "embedded":
        return [
            Finding(
                "P17",
                "blocker",
                f"{name}, is the embeddable package: no pip, no venv, no headers.",
                "A full Python.",
                "Install Python 3.12 and start with that.",
                install,
                "PYTHON-HEADERS-MISSING",
            )
        ]
    findings = []
    if one.free_threaded:
        text = f"{name}, is a free-threaded build, which packages do not support yet."
        fix = "Install the ordinary Python 3.12."
        findings.append(Finding("P17", "major", text, "The ordinary build.", fix, install))
    if one.kind == "store":
        text = f"{name}, comes from the Microsoft Store, whose folders confuse Triton's compiler."
        wanted = "A Python from python.org."
        findings.append(Finding("P17", "minor", text, wanted, "Install it.", install))
    if one.outdated and facts.torch.version:
        findings.append(
            Finding(
                "P17",
                "minor",
                f"The environment needs a repair: {one.outdated}.",
                "An environment that is what its stamp says.",
                "Repair it.",
                shell.ours(facts, "setup --fix P17"),
                repairable=True,
            )
        )
    where = f" ({one.environment})" if one.environment else f" ({one.kind})"
    return findings or [Finding("P17", "ok", f"{name}{where}.")]


def variables(facts: Facts) -> list[Finding]:
    """P18: environment variables that change what runs."""
    there = facts.variables
    findings = [
        Finding(
            "P18",
            "minor",
            f"{name} is set: it {what}.",
            "Unset.",
            "Remove the variable.",
            shell.unset(facts, name),
        )
        for name, what in HARMFUL.items()
        if there.get(name, "0").lower() not in ("", "0", "false", "off", "no")
    ]
    library = there.get("LD_LIBRARY_PATH", "")
    if any("cuda" in part.lower() for part in library.split(":")):
        findings.append(
            Finding(
                "P18",
                "minor",
                "LD_LIBRARY_PATH names a CUDA folder, whose libraries may replace torch's own.",
                "Unset.",
                "Remove the variable.",
                shell.unset(facts, "LD_LIBRARY_PATH"),
                "NVJITLINK-MIXED-CUDA",
            )
        )
    if there.get("PYTHONPATH"):
        findings.append(Finding("P18", "info", "PYTHONPATH adds packages from elsewhere."))
    backend = there.get("TURBODIFFUSION_BACKEND")
    if backend:
        text = f"TURBODIFFUSION_BACKEND forces the {backend} form of every operator."
        findings.append(Finding("P18", "info", text))
    return findings or [Finding("P18", "ok", "No variable is in the way.")]


def windows(facts: Facts) -> list[Finding]:
    """P23: the Visual C++ runtime, long paths, scripts."""
    one = facts.windows
    if one is None:
        return [Finding("P23", "skip", "Not Windows.")]
    findings = []
    install = "winget install --exact --id Microsoft.VCRedist.2015+.x64"
    if one.runtime < OLDEST_RUNTIME:
        has = f"is {dotted(one.runtime)}" if one.runtime else "is not installed"
        findings.append(
            Finding(
                "P23",
                "major",
                f"The Visual C++ runtime {has}.",
                f"{dotted(OLDEST_RUNTIME)} or newer (the runtime, not Visual Studio).",
                "Install the runtime.",
                install,
                "WIN-VCREDIST-MISSING",
            )
        )
    if one.stale_runtime:
        findings.append(
            Finding(
                "P23",
                "major",
                f"{one.stale_runtime} is older than the system's and is loaded first.",
                "No copy of its own beside python.exe.",
                "Rename it.",
                shell.line(
                    ["Rename-Item", one.stale_runtime, one.stale_runtime + ".old"], "powershell"
                ),
                "TRITON-LIBTRITON-DLL",
            )
        )
    if not one.long_paths and len(facts.root) > 60:
        findings.append(
            Finding(
                "P23",
                "minor",
                f"Paths over 260 characters are off, and the checkout's has {len(facts.root)}.",
                "Long paths on, or a checkout near the root of the disk.",
                "Switch long paths on (as administrator).",
                "Set-ItemProperty HKLM:\\SYSTEM\\CurrentControlSet\\Control\\FileSystem "
                "LongPathsEnabled 1",
                "WIN-LONG-PATH",
            )
        )
    if one.policy in ("Restricted", "AllSigned"):
        findings.append(
            Finding(
                "P23",
                "info",
                f"PowerShell runs no scripts ({one.policy}); `python turbo.py` needs none.",
                cause="WIN-EXECUTION-POLICY",
            )
        )
    ok = f"Visual C++ runtime {dotted(one.runtime)}."
    return findings or [Finding("P23", "ok", ok)]


def container(facts: Facts) -> list[Finding]:
    """P24: a container's GPU devices, and a compatibility library in the way."""
    one = facts.platform
    if not one.container:
        return [Finding("P24", "skip", "Not a container.")]
    if one.nvidia_devices and not facts.driver.library:
        return [
            Finding(
                "P24",
                "blocker",
                "The container has the GPU's device files but not the driver library.",
                "The container toolkit adds both.",
                "Install the toolkit on the host and start the container with its GPUs.",
                "sudo nvidia-ctk runtime configure --runtime=docker && "
                "sudo systemctl restart docker",
                "DOCKER-NO-GPU-RUNTIME",
            )
        ]
    return [Finding("P24", "ok", f"A {one.container} container.")]


def build_tools(facts: Facts) -> list[Finding]:
    """P25: tools that other installations ask for. None of them is used here."""
    there = [f"{name} ({facts.tools[name]})" for name in NOT_NEEDED if facts.tools.get(name)]
    text = f"Not needed: {', '.join(NOT_NEEDED)}."
    if there:
        text += f" Found and ignored: {', '.join(there)}."
    return [Finding("P25", "info", text)]


def network(facts: Facts) -> list[Finding]:
    """P20: the hub can be reached; only downloads need it."""
    if facts.variables.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return [Finding("P20", "info", "HF_HUB_OFFLINE is set: nothing is downloaded.")]
    if not facts.network:
        return [Finding("P20", "skip", "Not asked.")]
    if facts.network == "ok":
        return [Finding("P20", "ok", "The hub answers.")]
    return [
        Finding(
            "P20",
            "minor",
            f"The hub cannot be reached ({facts.network}); only downloads need it.",
            "A connection to the hub, or a mirror in HF_ENDPOINT.",
            "Use a folder of models that was fetched elsewhere.",
            shell.ours(facts, "download TurboWan2.1-T2V-1.3B-480P --from FOLDER"),
            "DNS-FAILURE" if "name" in facts.network else "HUB-TIMEOUT",
        )
    ]
