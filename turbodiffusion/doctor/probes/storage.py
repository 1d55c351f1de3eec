"""P13–P15, P21, P27: folders, disks, memory, checkpoint files, the video writer."""

from __future__ import annotations

import math

from turbodiffusion.doctor import shell
from turbodiffusion.doctor.facts import GB, Facts
from turbodiffusion.doctor.findings import Finding
from turbodiffusion.doctor.probes.torch import broken

ENVIRONMENT_NEED = 10 * GB
"""Room for a CUDA environment: about 5 GB installed, and as much while pip unpacks."""

SMALLEST_SET = 14.7 * GB
"""TurboWan2.1-T2V-1.3B-480P quantised with VAE and text encoder: 13.3 GB, and a tenth more."""

MEMORY_WANTED = 15 * GB
"""Of a computer sold with 16 GB: enough for the 1.3B model, whose text encoder has 11.4 GB."""

MEMORY_NEEDED = 3.5 * GB
"""Below this not even importing torch and running the embedded model is comfortable."""

LONG_PATH = 120

VARIABLES = {
    "environment": "TURBODIFFUSION_VENV",
    "models": "TURBODIFFUSION_MODELS",
    "hub cache": "HF_HOME",
    "compiled kernels": "TRITON_CACHE_DIR",
}
"""What moves each folder; the others are temporary."""


def caches(facts: Facts) -> list[Finding]:
    """P13: folders for compiled kernels and downloads can be written to."""
    findings = []
    for folder in facts.folders:
        if not folder.writable:
            variable = VARIABLES.get(folder.what, "TMPDIR")
            if variable == "TMPDIR" and facts.shell == "powershell":
                variable = "TEMP"
            elsewhere = "C:\\turbo" if facts.shell == "powershell" else "$HOME/turbo"
            findings.append(
                Finding(
                    "P13",
                    "major",
                    f"The folder for {folder.what} cannot be written to: {folder.path}.",
                    "A folder of yours.",
                    "Point the variable to one.",
                    shell.assign(facts, variable, elsewhere).replace(
                        "'$HOME/turbo'", '"$HOME/turbo"'
                    ),
                    "TRITON-CACHE-PERMISSION" if folder.what == "compiled kernels" else "",
                )
            )
        elif facts.windows and len(folder.path) > LONG_PATH and not facts.windows.long_paths:
            findings.append(
                Finding(
                    "P13",
                    "minor",
                    f"The path for {folder.what} has {len(folder.path)} characters.",
                    f"At most {LONG_PATH}: files inside reach Windows' limit of 260.",
                    "Use a short one.",
                    shell.assign(facts, VARIABLES.get(folder.what, "TEMP"), "C:\\turbo"),
                    "WIN-LONG-PATH",
                )
            )
        elif folder.network:
            text = f"The folder for {folder.what} lies on a network disk ({folder.network}): slow."
            findings.append(Finding("P13", "info", text))
    return findings or [Finding("P13", "ok", "Every cache folder can be written to.")]


def disk(facts: Facts) -> list[Finding]:
    """P14: room for the environment, a temporary copy, and the smallest full-size model."""
    findings = []
    installing = not facts.torch.version
    for folder in facts.folders:
        need, what, level = 1 * GB, "anything at all", "blocker"
        if installing and folder.what == "environment":
            need, what = ENVIRONMENT_NEED, "the environment"
        elif folder.what == "models":
            if folder.free >= 1 * GB:
                need, what, level = math.ceil(SMALLEST_SET), "the smallest full-size model", "major"
        elif folder.what not in ("environment", "temporary files"):
            continue
        if folder.free < need:
            findings.append(
                Finding(
                    "P14",
                    "blocker" if level == "blocker" else "major",
                    f"{folder.path} ({folder.what}) has {folder.free / GB:.1f} GB free, too little "
                    f"for {what}.",
                    f"{need / GB:.1f} GB.",
                    "See what takes the room, and free some.",
                    _largest(facts, folder.path),
                    "DISK-FULL",
                )
            )
    room = min((f.free for f in facts.folders), default=0)
    return findings or [Finding("P14", "ok", f"At least {room / GB:.1f} GB free everywhere.")]


def _largest(facts: Facts, path: str) -> str:
    if facts.shell == "powershell":
        return "Get-PSDrive -PSProvider FileSystem"
    return f"{shell.line(['du', '-xh', '--max-depth=2', path], 'bash')} | sort -h | tail"


def memory(facts: Facts) -> list[Finding]:
    """P15: memory of the computer, of WSL's share, or of the container's limit."""
    one = facts.memory
    size = min(one.total, one.limit) if one.limit else one.total
    text = f"{size / GB:.1f} GB of memory, {one.available / GB:.1f} available"
    if size >= MEMORY_WANTED:
        return [Finding("P15", "ok", f"{text}.")]
    level, wanted = "major", "16 GB for the smallest full-size model."
    if size < MEMORY_NEEDED:
        level, wanted = "blocker", "4 GB for the embedded model, 16 GB for the smallest full-size."
    fix, command = "Close other programs, or use the embedded model.", shell.ours(facts, "plan")
    if one.limit and one.limit < one.total:
        fix = "Start the container with a larger limit."
        command = "docker run --rm --gpus all --memory 32g -it IMAGE"
    elif facts.platform.wsl:
        fix = "Raise WSL's share (half of the memory by default) and stop WSL once."
        command = (
            r"printf '[wsl2]\nmemory=24GB\n' >> "
            '"$(wslpath "$(cmd.exe /c echo %USERPROFILE% | tr -d "\\r")")/.wslconfig"'
            " && wsl.exe --shutdown"
        )
    return [
        Finding(
            "P15",
            "blocker" if level == "blocker" else "major",
            f"{text}.",
            wanted,
            fix,
            command,
            "HOST-OOM-KILLED",
        )
    ]


def files(facts: Facts) -> list[Finding]:
    """P21: checkpoint files that are here are whole and are checkpoints."""
    findings = [
        Finding("P21", "major", sentence, "A complete checkpoint.", fix, _again(facts, path))
        for path, sentence, fix in facts.files
    ]
    return findings or [Finding("P21", "ok", "No damaged checkpoint was found.")]


def _again(facts: Facts, path: str) -> str:
    return shell.ours(facts, shell.line(["inspect", path], facts.shell))


def video(facts: Facts) -> list[Finding]:
    """P27: frames can be written into a file."""
    if not facts.video or facts.video in broken(facts):
        why = "Not tried." if not facts.video else "It fails because of another package (P19)."
        return [Finding("P27", "skip", why)]
    if facts.video == "ok":
        return [Finding("P27", "ok", "Two frames were written and read back.")]
    return [
        Finding(
            "P27",
            "major",
            f"A test video could not be written: {facts.video}",
            "PyAV with an mp4 encoder.",
            "Install the pinned packages again.",
            shell.ours(facts, "setup --fix P27")
            if facts.python.ours
            else shell.pip(facts, "install", "--force-reinstall", "av"),
            "VIDEO-WRITER-MISSING",
            repairable=True,
        )
    ]
