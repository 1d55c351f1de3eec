"""Read the real machine into :class:`turbodiffusion.doctor.facts.Facts`.

First stage: files, the standard library, and ``nvidia-smi`` or the driver library in a child; it
imports nothing that is not Python's own. Second stage: torch, Triton, other packages, the video
writer and the network, each in a child with a time limit, all at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from turbodiffusion.bootstrap.environment import Environment
from turbodiffusion.doctor.child import Child, run_all
from turbodiffusion.doctor.facts import Facts, Operator, Package, Torch, Triton
from turbodiffusion.doctor.readings import graphics, packages, storage, system
from turbodiffusion.doctor.readings.interpreter import Target, find_target, read_python

STAGES = ("torch", "triton", "packages", "network", "video")
"""The children of the second stage, by the names that probes give as their needs."""

VARIABLES = (
    "CC",
    "CUDA_CACHE_DISABLE",
    "CUDA_DEVICE_ORDER",
    "CUDA_HOME",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_PATH",
    "CUDA_VISIBLE_DEVICES",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "LD_LIBRARY_PATH",
    "PIP_EXTRA_INDEX_URL",
    "PIP_INDEX_URL",
    "PYTHONPATH",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_USE_CUDA_DSA",
    "TRITON_ALWAYS_COMPILE",
    "TRITON_CACHE_DIR",
    "TRITON_INTERPRET",
    "TRITON_OVERRIDE_ARCH",
    "TRITON_PTXAS_PATH",
    "TURBODIFFUSION_BACKEND",
    "TURBODIFFUSION_MODELS",
    "TURBODIFFUSION_TORCH",
    "TURBODIFFUSION_VENV",
)
"""Environment variables that some probe reads, or that a maintainer wants to see."""


def read(
    needs: Iterable[str] = STAGES,
    on_stage: Callable[[str], None] | None = None,
    environment: Environment | None = None,
) -> Facts:
    """This machine.

    Args:
        needs: which children of the second stage to ask.
        on_stage: called with a sentence when the second stage begins.
        environment: judge this one instead of finding out which a run would use.
    """
    begun = time.perf_counter()
    target = find_target(environment)
    facts = first_stage(target)
    spent = {"first": time.perf_counter() - begun}
    asked = _children(facts, target, set(needs))
    if asked and on_stage:
        on_stage(f"asking {', '.join(asked)} …")
    answers = run_all(str(target.python), asked)
    spent["all"] = time.perf_counter() - begun
    return replace(_second_stage(facts, answers), seconds=spent)


def first_stage(target: Target) -> Facts:
    """Everything that is known without importing a package."""
    with ThreadPoolExecutor(2) as pool:  # both wait for programs
        gpus = pool.submit(graphics.read_gpus)
        driver = pool.submit(graphics.read_library)
        platform = system.read_platform()
        facts = Facts(
            platform=platform,
            python=read_python(target),
            torch=packages.read_torch(target),
            triton=packages.read_triton(target),
            packages=packages.read_foreign(target),
            missing=packages.missing(target),
            compiler=system.read_compiler(target),
            memory=storage.read_memory(),
            folders=storage.read_folders(target),
            files=storage.damaged_files(),
            windows=system.read_windows() if platform.system == "Windows" else None,
            variables={k: os.environ[k] for k in VARIABLES if k in os.environ},
            tools=system.read_tools(target),
            shell=system.shell(),
            launcher=system.launcher(),
            root=str(target.root),
        )
        listed, known = graphics.combine(gpus.result(), driver.result())
        return replace(facts, gpus=listed, driver=known)


def _children(facts: Facts, target: Target, needs: set[str]) -> dict[str, Child]:
    root = str(target.root)
    there: dict[str, Child] = {}
    if facts.torch.version:
        if "torch" in needs:
            there["torch"] = Child("torch_facts")
            there["operators"] = Child("operator_facts", (root,))
        if "triton" in needs and facts.triton.distributions:
            there["triton"] = Child("triton_facts", ("gpu",) if facts.gpus else ())
    if "packages" in needs:
        for package in facts.packages:
            if module := packages.MODULES.get(package.name):
                there[package.name] = Child("import_one", (module,))
    if "video" in needs and "av" in {package.name for package in facts.packages}:
        there["video writer"] = Child("video_facts", (root,))
    if "network" in needs and facts.variables.get("HF_HUB_OFFLINE", "0") in ("", "0"):
        there["network"] = Child("hub_facts", limit=5.0)
    return there


def _second_stage(facts: Facts, answers: dict[str, dict[str, Any]]) -> Facts:
    """The facts with what the children answered; a late child leaves its part unknown."""
    if "torch" in answers:
        facts = _with_torch(facts, answers["torch"])
    if "triton" in answers:
        facts = replace(facts, triton=_with_triton(facts.triton, answers["triton"]))
    found = tuple(
        Package(one.name, one.version, answers.get(one.name, {}).get("error", ""))
        if not answers.get(one.name, {}).get("late")
        else one
        for one in facts.packages
    )
    rows = answers.get("operators", {}).get("operators", ())
    video, network = answers.get("video writer", {}), answers.get("network", {})
    return replace(
        facts,
        packages=found,
        operators=tuple(Operator(*row) for row in rows),
        video="" if video.get("late") else video.get("video", video.get("error", "")),
        network=network.get("network", network.get("error", "")),
    )


def _with_torch(facts: Facts, answer: dict[str, Any]) -> Facts:
    if answer.get("late"):
        return replace(facts, torch=replace(facts.torch, error=answer["error"]))
    if "error" in answer:
        return replace(facts, torch=replace(facts.torch, imported=False, error=answer["error"]))
    torch: Torch = replace(
        facts.torch,
        imported=True,
        seconds=answer["seconds"],
        architectures=tuple(answer["architectures"]),
        cuda=answer["cuda"],
        cudnn=answer["cudnn"],
        gpus=answer["gpus"],
        smoke=answer["smoke"],
        shared_memory=answer["shared_memory"],
    )
    return replace(facts, torch=torch)


def _with_triton(triton: Triton, answer: dict[str, Any]) -> Triton:
    if answer.get("late"):
        return triton
    if "error" in answer:
        return replace(triton, imported=False, error=answer["error"])
    return replace(
        triton,
        imported=True,
        smoke=answer["smoke"],
        seconds=answer["seconds"],
        assemblers=tuple(answer["assemblers"]),
    )
