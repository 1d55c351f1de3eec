"""Commands in the words of the user's own shell and system.

``bash`` stands for every POSIX shell. PowerShell quotes differently and starts a quoted program
with ``&``. A command for WSL's Windows side goes through ``powershell.exe``.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from turbodiffusion.doctor.facts import Facts

DRIVERS = "https://www.nvidia.com/drivers"

_DRIVER_PACKAGES = {
    "ubuntu": "sudo ubuntu-drivers install && sudo reboot",
    "debian": "sudo apt install nvidia-driver && sudo reboot",
    "fedora": "sudo dnf install akmod-nvidia && sudo reboot",
    "arch": "sudo pacman -Syu nvidia && sudo reboot",
}
_PACKAGES = {
    "ubuntu": "sudo apt install -y {apt}",
    "debian": "sudo apt install -y {apt}",
    "fedora": "sudo dnf install -y {dnf}",
    "rhel": "sudo dnf install -y {dnf}",
    "rocky": "sudo dnf install -y {dnf}",
    "almalinux": "sudo dnf install -y {dnf}",
    "arch": "sudo pacman -S --needed {pacman}",
    "opensuse-leap": "sudo zypper install -y {dnf}",
    "opensuse-tumbleweed": "sudo zypper install -y {dnf}",
}


def quote(word: str, shell: str) -> str:
    """One argument as ``shell`` wants it."""
    if shell != "powershell":
        return shlex.quote(word)
    plain = word and all(c.isalnum() or c in "-_./:\\=+@,~" for c in word) and "," not in word
    return word if plain else "'" + word.replace("'", "''") + "'"


def line(words: Sequence[str], shell: str) -> str:
    """A whole command; PowerShell needs ``&`` before a quoted program."""
    text = " ".join(quote(word, shell) for word in words)
    return f"& {text}" if shell == "powershell" and text.startswith("'") else text


def unset(facts: Facts, name: str) -> str:
    """Remove an environment variable from the running shell."""
    return f"Remove-Item Env:{name}" if facts.shell == "powershell" else f"unset {name}"


def assign(facts: Facts, name: str, value: str) -> str:
    """Set an environment variable in the running shell."""
    if facts.shell == "powershell":
        return f"$env:{name} = '" + value.replace("'", "''") + "'"
    return f"export {name}={shlex.quote(value)}"


def ours(facts: Facts, words: str) -> str:
    """One of our own commands, started the way this one was."""
    return f"{facts.launcher} {words}"


def pip(facts: Facts, *words: str) -> str:
    """pip of the judged interpreter."""
    return line([facts.python.executable or "python", "-m", "pip", *words], facts.shell)


def update_driver(facts: Facts) -> str:
    """Get the newest NVIDIA driver: by the distribution where it has one, else by its page."""
    platform = facts.platform
    if platform.wsl:
        return f"powershell.exe Start-Process {DRIVERS}"
    if platform.system == "Windows":
        return f"Start-Process {DRIVERS}"
    return _DRIVER_PACKAGES.get(platform.distribution, f"xdg-open {DRIVERS}")


def install(facts: Facts, apt: str, dnf: str = "", pacman: str = "") -> str:
    """Install a system package by the distribution's manager; "" where it is not known."""
    template = _PACKAGES.get(facts.platform.distribution, "")
    command = template.format(apt=apt, dnf=dnf or apt, pacman=pacman or apt)
    return command.replace("sudo ", "") if facts.platform.container else command


def install_python(facts: Facts) -> str:
    """A full 64-bit Python 3.12."""
    if facts.platform.system == "Windows":
        return "winget install --exact --id Python.Python.3.12"
    if facts.platform.system == "Darwin":
        return "brew install python@3.12"
    return install(facts, "python3.12 python3.12-venv", "python3.12", "python312")


def restart_wsl(facts: Facts) -> str:
    """Stop WSL from inside or outside; the next start reads its settings and drivers anew."""
    return "wsl.exe --shutdown" if facts.platform.wsl else "wsl --shutdown"
