"""``setup --docker``: a Dockerfile for this checkout, what not to send along, and how to start it.

The image is Python's own slim one: torch's wheels bring their CUDA libraries and the container
toolkit the driver, so no CUDA image is needed. gcc and libc's headers are for Triton's launcher;
Python's headers are in the image. While an image is built no GPU is visible, so the tag of torch
is fixed: the one of the machine that writes the file, or the one asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from turbodiffusion.bootstrap import gpu, tags
from turbodiffusion.bootstrap.tags import Machine
from turbodiffusion.doctor.readings.interpreter import ROOT
from turbodiffusion.errors import SetupError

TAG_WITHOUT_GPU = "cu130"
"""Where no GPU is visible: code for capability 7.5 to 12.0, for drivers from 580."""

DOCKERFILE = """\
FROM python:3.12-slim
RUN apt-get update \\
    && apt-get install -y --no-install-recommends gcc libc6-dev \\
    && rm -rf /var/lib/apt/lists/*
WORKDIR /turbodiffusion
COPY turbo.py pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY turbodiffusion turbodiffusion
RUN python turbo.py setup --torch {tag} --yes && rm -rf /root/.cache/pip
ENV NVIDIA_VISIBLE_DEVICES=all \\
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \\
    TURBODIFFUSION_TORCH={tag} \\
    TURBODIFFUSION_MODELS=/models \\
    TURBODIFFUSION_CACHE=/cache/turbodiffusion \\
    TRITON_CACHE_DIR=/cache/triton \\
    HF_HOME=/cache/huggingface
VOLUME ["/models", "/cache", "/output"]
WORKDIR /output
ENTRYPOINT ["python", "/turbodiffusion/turbo.py"]
CMD ["doctor"]
"""

IGNORE = """\
*
!turbo.py
!pyproject.toml
!README.md
!LICENSE
!requirements
!turbodiffusion
**/__pycache__
"""

START = """\
Build and start (a Docker engine and, for the GPU, the NVIDIA container toolkit on the host):
  docker build -t turbodiffusion {folder}
  docker run --rm --gpus all turbodiffusion doctor
  docker run --rm --gpus all --shm-size 2g -v turbo-models:/models -v turbo-cache:/cache \
-v "{here}:/output" turbodiffusion generate "a red circle moving right on a black background"
Neither was run when this was written: no Docker engine was at hand."""


def dockerfile(tag: str) -> str:
    """The Dockerfile for one build of torch."""
    return DOCKERFILE.format(tag=tag)


def choose_tag(asked: str, machine: Machine) -> str:
    """The tag asked for, else this machine's, else the widest."""
    if asked:
        return asked
    if not machine.gpus:
        return TAG_WITHOUT_GPU
    try:
        return tags.choose(machine).tag
    except SetupError:
        return TAG_WITHOUT_GPU


def run(
    asked: str,
    here: Path,
    dry_run: bool,
    agree: Callable[[str], bool],
    say: Callable[[str], None],
    root: Path = ROOT,
) -> int:
    """Write the two files into the checkout, unless they are there with other content."""
    tag = choose_tag(asked, gpu.read_machine())
    for name, text in (("Dockerfile", dockerfile(tag)), (".dockerignore", IGNORE)):
        path = root / name
        if dry_run:
            say(f"# {path}\n{text}")
        elif path.exists() and path.read_text("utf-8") == text:
            say(f"{path} is up to date.")
        elif path.exists() and not agree(f"{path} exists with other content. Replace it?"):
            say(f"Kept: {path}")
        else:
            path.write_text(text, "utf-8", newline="\n")
            say(f"Written: {path} (torch {tag})" if name == "Dockerfile" else f"Written: {path}")
    say(START.format(folder=root, here=here))
    return 0
