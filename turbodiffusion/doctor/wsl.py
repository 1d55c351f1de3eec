"""``setup --wsl``: the numbered way to a GPU inside WSL, with a check before and after each step.

On Windows the steps are for PowerShell, inside WSL for bash, where the facts of the running system
tick off what is already there. The steps were written from documentation, not run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from turbodiffusion.doctor import readings, shell
from turbodiffusion.doctor.facts import GB, Facts


@dataclass(frozen=True)
class Step:
    """One thing to do: the shell it belongs to, a command, and how to see that it worked."""

    what: str
    where: str  # PowerShell or bash
    command: str
    check: str
    done: Callable[[Facts], bool] | None = None  # answered inside WSL


STEPS = (
    Step(
        "Virtualisation is on (otherwise switch it on in the firmware)",
        "PowerShell",
        "systeminfo | Select-String 'Virtualization','hypervisor'",
        "it says a hypervisor has been detected, or Yes",
        lambda facts: facts.platform.wsl,
    ),
    Step(
        "WSL 2 with Ubuntu (as administrator; restarts Windows once)",
        "PowerShell",
        "wsl --install -d Ubuntu-24.04",
        "`wsl --list --verbose` shows VERSION 2",
        lambda facts: facts.platform.wsl and facts.platform.wsl_gpu,
    ),
    Step(
        "The NVIDIA driver of Windows; none is installed inside WSL",
        "PowerShell",
        f"Start-Process {shell.DRIVERS}",
        "`nvidia-smi` inside WSL lists the GPU",
        lambda facts: bool(facts.gpus),
    ),
    Step(
        "A newer WSL, for its GPU libraries",
        "PowerShell",
        "wsl --update; wsl --shutdown",
        "/usr/lib/wsl/lib/libcuda.so.1 exists",
        lambda facts: facts.platform.wsl_library,
    ),
    Step(
        "More memory than the default half: [wsl2] memory=24GB in .wslconfig, then stop WSL",
        "PowerShell",
        'Add-Content "$env:USERPROFILE\\.wslconfig" "[wsl2]`nmemory=24GB"; wsl --shutdown',
        "`free -g` inside WSL shows it",
        lambda facts: facts.memory.total >= 15 * GB,
    ),
    Step(
        "Python with headers and a C compiler, which Triton's launcher needs",
        "bash",
        "sudo apt update && sudo apt install -y python3-venv python3-dev gcc git",
        "`python3 --version` is 3.10 to 3.13",
        lambda facts: facts.python.headers and bool(facts.compiler.found),
    ),
    Step(
        "The checkout and the models on WSL's own disk; below /mnt every read crosses over",
        "bash",
        "cd ~ && pwd",
        "the path does not begin with /mnt",
        lambda facts: bool(facts.root) and not facts.root.startswith("/mnt/"),
    ),
    Step(
        "The environment",
        "bash",
        "python3 turbo.py setup --yes",
        "its last line begins with `ready`",
        lambda facts: bool(facts.torch.version),
    ),
)


def guide(facts: Facts) -> list[str]:
    """The steps; inside WSL those that are done are marked."""
    inside = facts.platform.wsl
    lines = []
    for number, step in enumerate(STEPS, 1):
        mark = "done " if inside and step.done and step.done(facts) else ""
        lines.append(f"{number}. {mark}{step.what}")
        if not mark:
            lines.append(f"   {step.where}:  {step.command}")
            lines.append(f"   check: {step.check}")
    return lines


def run(say: Callable[[str], None]) -> int:
    """Print the guide for the system this runs on."""
    facts = readings.read(())
    if facts.platform.system == "Linux" and not facts.platform.wsl:
        say("This is Linux itself: nothing of this is needed here.")
    for line in guide(facts):
        say(line)
    return 0
