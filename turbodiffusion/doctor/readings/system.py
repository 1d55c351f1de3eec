"""The system, its shell, its C compiler, and tools that are not needed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from turbodiffusion.doctor.facts import Compiler, Platform, Windows
from turbodiffusion.doctor.readings.interpreter import Target
from turbodiffusion.doctor.shell import line

NVIDIA = "0x10de"


def read_platform() -> Platform:
    """Operating system, libc, WSL, container, and NVIDIA devices on the PCI bus."""
    system, release = platform.system(), platform.release()
    libc = " ".join(platform.libc_ver()).strip() if system == "Linux" else ""
    if system == "Linux" and not libc and any(Path("/lib").glob("ld-musl-*")):
        libc = "musl"
    return Platform(
        system=system,
        release=release,
        arch=platform.machine(),
        distribution=_distribution(),
        libc=libc,
        wsl="microsoft" in release.lower(),
        wsl_gpu=os.path.exists("/dev/dxg"),
        wsl_library=os.path.exists("/usr/lib/wsl/lib/libcuda.so.1"),
        container=_container(),
        nvidia_devices=any(os.path.exists(p) for p in ("/dev/nvidiactl", "/dev/nvidia0")),
        nvidia_hardware=_nvidia_hardware(Path("/sys/bus/pci/devices")),
    )


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("ID", "")
    except OSError:
        return ""


def _container() -> str:
    """docker, podman, kubernetes or lxc; "" outside of one."""
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    if os.path.exists("/run/.containerenv"):
        return "podman"
    if os.path.exists("/.dockerenv"):
        return "docker"
    kind = os.environ.get("container", "")  # noqa: SIM112 - systemd's own name
    return kind if kind in ("docker", "podman", "lxc") else ""


def _nvidia_hardware(folder: Path) -> int:
    """NVIDIA display devices (class 03) that the PCI bus lists, driver or not."""
    count = 0
    try:
        for device in folder.iterdir():
            vendor = (device / "vendor").read_text("ascii").strip()
            kind = (device / "class").read_text("ascii").strip()
            count += vendor == NVIDIA and kind.startswith("0x03")
    except (OSError, ValueError):
        return count
    return count


def read_compiler(target: Target) -> Compiler:
    """What ``CC``, ``gcc`` and ``clang`` lead to."""
    variable = os.environ.get("CC", "")
    works = bool(variable) and shutil.which(variable.split()[0]) is not None
    found = next((name for name in ("gcc", "clang", "cc") if shutil.which(name)), "")
    bundled = any((p / "triton" / "runtime" / "tcc").is_dir() for p in target.folders)
    return Compiler(variable, works or not variable, found, bundled)


def read_tools(target: Target) -> dict[str, str]:
    """Where the tools are that other installations ask for; only named to say so."""
    places = {
        "nvcc": shutil.which("nvcc") or "",
        "Visual Studio": shutil.which("cl") or _visual_studio(),
        "Conda": shutil.which("conda") or "",
        "flash-attn": next((str(p) for p in target.folders if (p / "flash_attn").is_dir()), ""),
    }
    return {name: path for name, path in places.items() if path}


def _visual_studio() -> str:
    base = os.environ.get("PROGRAMFILES(X86)", "")
    path = os.path.join(base, "Microsoft Visual Studio", "Installer", "vswhere.exe")
    return path if base and os.path.isfile(path) else ""


def shell() -> str:
    """``powershell`` on Windows and wherever PowerShell runs, else ``bash``."""
    if os.name == "nt":
        return "powershell"
    return "powershell" if os.environ.get("POWERSHELL_DISTRIBUTION_CHANNEL") else "bash"


def launcher() -> str:
    """How the user started the command, to be used again in the fixes."""
    if os.path.basename(sys.argv[0]) != "turbo.py":
        return "turbodiffusion"
    here = os.path.abspath(sys.argv[0]) == os.path.join(os.getcwd(), "turbo.py")
    python = "python" if os.name == "nt" or shutil.which("python") else "python3"
    return line([python, "turbo.py" if here else sys.argv[0]], shell())


def read_windows() -> Windows | None:
    """The Visual C++ runtime, long paths and the script policy; None where it is not Windows."""
    if sys.platform != "win32":
        return None
    from turbodiffusion.doctor.readings import win32

    return win32.read()


def output(command: list[str], limit: float = 5.0) -> str:
    """What a program prints, or "" when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
