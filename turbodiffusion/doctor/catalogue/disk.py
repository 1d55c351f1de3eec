"""Full disks."""

from __future__ import annotations

from turbodiffusion.doctor.catalogue.entry import Entry, either, linux, run, wsl

ENTRIES = (
    Entry(
        id="DISK-FULL",
        title="A disk is full.",
        cause=(
            "The target, the hub's cache, pip's cache or the temporary folder: often a "
            "small system drive while there is room elsewhere."
        ),
        fixes=(
            either(
                "Use folders on a larger disk.",
                "export HF_HOME=/data/hf TMPDIR=/data/tmp PIP_CACHE_DIR=/data/pip",
                "$env:HF_HOME = 'D:\\hf'; $env:TEMP = 'D:\\tmp'; $env:PIP_CACHE_DIR = 'D:\\pip'",
            ),
            run("Empty pip's cache.", "python -m pip cache purge"),
            run("Empty uv's cache.", "uv cache prune"),
            wsl(
                "After deleting, shrink WSL's disk: stop it, then compact its ext4.vhdx.",
                powershell="wsl --shutdown",
            ),
        ),
        patterns=(r"No space left on device", r"\[Errno 28\]", r"WinError 112\b"),
        seen=("[Errno 28] No space left on device",),
        stage="download",
        platforms="linux windows wsl docker",
        relation="P",
        probes="P14",
    ),
    Entry(
        id="DISK-TOO-SMALL-FOR-FILE",
        title="There is too little room for a download.",
        cause="The hub's client only warns, and may end without an error.",
        fixes=(
            run(
                "turbodiffusion checks before the first byte and says how much is missing.",
                "turbodiffusion download MODEL --dry-run",
            ),
            either(
                "Use a folder on a larger disk.",
                "export HF_HOME=/data/hf",
                "$env:HF_HOME = 'D:\\hf'",
            ),
        ),
        patterns=(
            (
                r"Not enough free disk space to download the file\. The expected file size is: "
                r"(?P<needed_mb>[\d.]{1,15}) MB"
            ),
        ),
        seen=(
            (
                "UserWarning: Not enough free disk space to download the file. The expected "
                "file size is: 3945.44 MB."
            ),
        ),
        stage="download",
        platforms="linux windows",
        relation="P",
        probes="P14",
    ),
    Entry(
        id="DISK-QUOTA",
        title="Your quota on this disk is used up.",
        cause="Home folders of shared machines are limited.",
        fixes=(
            linux(
                "Use the folder for large data.",
                "export HF_HOME=/scratch/$USER/hf TRITON_CACHE_DIR=/scratch/$USER/triton",
            ),
        ),
        patterns=(r"\[Errno 122\] Disk quota exceeded",),
        seen=("OSError: [Errno 122] Disk quota exceeded",),
        stage="download",
        platforms="linux",
        relation="P",
        probes="P14",
    ),
)
