"""How much faster the student is: same machine, same run, one video at a time.

Three times are taken of each row. *Denoising* is what distillation and sparse attention change: the
network's calls alone. *Prompt to file* adds text, decoding and writing with the model loaded.
*Whole command* is a new process: imports, reading the weights, planning. Decoding and start-up are
the same for teacher and student, so they bound the last two ratios.

Rows take turns, so that a neighbour who wakes up on the machine meets all of them; medians are
reported.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from turbodiffusion.errors import SetupError, UsageError
from turbodiffusion.media.libraries import import_av
from turbodiffusion.mini.evaluate import Progress
from turbodiffusion.mini.export import find_part, read_report, size_name, update_report
from turbodiffusion.mini.networks import Networks, network_calls, requests_of
from turbodiffusion.mini.recipe import SizeRecipe
from turbodiffusion.mini.rows import BY_NAME, Row, choose
from turbodiffusion.mini.runtime import machine
from turbodiffusion.mini.table import NOTHING, align
from turbodiffusion.pipeline.request import Request

PROMPT = "a red circle moving right on a black background"
AIM = 20.0
"""Least ratio of denoising times, teacher over student."""
KINDS = {
    "denoising": "denoising",
    "to_file": "prompt to file",
    "command": "whole command",
}


@dataclass
class Timed:
    """One row with what it runs and the seconds it took, by kind."""

    row: Row
    request: Request
    runs: dict[str, Callable[[], object]]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def as_json(self, first: Timed) -> dict[str, Any]:
        """Medians, single times, and how many times faster than ``first``."""
        values: dict[str, Any] = {
            "row": self.row.shown, "network_calls": network_calls(self.request),
        }  # fmt: skip
        for kind, taken in self.seconds.items():
            median = statistics.median(taken)
            values[kind] = {"median": round(median, 5), "seconds": [round(s, 5) for s in taken]}
            if self is not first:
                ratio = statistics.median(first.seconds[kind]) / median
                values[kind]["faster"] = round(ratio, 2)
        return values


def measure_speed(
    size: SizeRecipe, folder: Path | None, device: str | None, names: Sequence[str], repeats: int,
    kinds: Sequence[str], progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Times of the rows called ``names``, the first being the one the others are compared with.

    Args:
        repeats: of every time. kinds: some of ``KINDS``.

    Raises:
        UsageError: a row that samples nothing. WeightsError: a file is missing.
        SetupError: a file is to be written and the library for it is missing.
    """
    choose(names, size, folder)
    if wrong := [name for name in names if not BY_NAME[name].part]:
        raise UsageError("mini-row", f"The row {wrong[0]} has no sampler to time.",
                         "Name rows such as teacher,student-4.")  # fmt: skip
    if "to_file" in kinds or "command" in kinds:
        import_av()
    networks = Networks(size, folder, device)
    with tempfile.TemporaryDirectory() as place:
        timed = [_prepare(networks, BY_NAME[name], Path(place), kinds) for name in names]
        for one in timed:
            _warm_up(networks, one)
        for turn in range(repeats):
            for one in timed if turn % 2 == 0 else timed[::-1]:
                for kind, run in one.runs.items():
                    start = _clock(networks.device)
                    run()
                    took = _clock(networks.device) - start
                    one.seconds.setdefault(kind, []).append(took)
                    progress(f"{turn + 1}/{repeats} {one.row.name}, {KINDS[kind]}: {took:.2f} s")
    return {
        "model": size_name(size), "machine": machine(networks.device), "prompt": PROMPT,
        "repeats": repeats, "aim": AIM, "rows": [one.as_json(timed[0]) for one in timed],
    }  # fmt: skip


def _prepare(networks: Networks, row: Row, place: Path, kinds: Sequence[str]) -> Timed:
    pipe = networks.pipeline(row)
    request = requests_of(pipe, row, [PROMPT], [0])[0]
    context = pipe.encode_prompts([PROMPT])
    negative = pipe.encode_prompts([""]) if request.guided else None
    target = place / f"{row.name}.mp4"

    def denoise() -> object:
        return pipe.denoise([request], context, negative)

    def to_file() -> object:
        guidance = request.guidance if request.baseline else None
        made = pipe(PROMPT, num_inference_steps=request.steps, guidance_scale=guidance)
        return made.save(target)

    def command() -> object:
        words = [
            "generate", PROMPT, "--model", str(find_part(networks.size, networks.folder, row.part)),
            "--steps", str(request.steps),
            "--output", str(target), "--device", str(networks.device),
        ]  # fmt: skip
        if row.attention != "own":
            words += ["--attention", row.attention]
        if request.baseline:
            words += ["--baseline", "--guidance", str(request.guidance)]
        done = subprocess.run(
            [sys.executable, "-m", "turbodiffusion", *words], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise SetupError(
                "mini-speed-command", f"The timed command failed: {done.stderr.strip()[-500:]}",
                f"Run it alone: turbodiffusion {' '.join(words)}",
            )  # fmt: skip
        return done

    runs = {"denoising": denoise, "to_file": to_file, "command": command}
    return Timed(row, request, {kind: runs[kind] for kind in KINDS if kind in kinds})


def _warm_up(networks: Networks, one: Timed) -> None:
    """Compile and allocate what a row needs, by its shortest video."""
    pipe = networks.pipeline(one.row)
    steps = 1 if one.row.few_step else 2
    pipe(PROMPT, num_inference_steps=steps)


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def text(result: dict[str, Any]) -> str:
    """The medians as a table, with the ratios to the first row."""
    rows = result["rows"]
    kinds = [kind for kind in KINDS if kind in rows[0]]
    lines = [["row", "calls", *(f"{KINDS[kind]} s" for kind in kinds)]]
    for row in rows:
        cells = []
        for kind in kinds:
            value = row.get(kind)
            faster = f" ({value['faster']:.1f}×)" if value and "faster" in value else ""
            cells.append(f"{value['median']:.3f}{faster}" if value else NOTHING)
        lines.append([row["row"], str(row["network_calls"]), *cells])
    said = []
    for row in rows[1:]:
        if "denoising" in row:
            ratio = row["denoising"]["faster"]
            met = "met" if ratio >= result["aim"] else "not met"
            said.append(
                f"Denoising of {row['row']} is {ratio:.1f}× as fast as of {rows[0]['row']} "
                f"(aim ≥ {result['aim']:g}×: {met})."
            )
    return "\n".join([align(lines), *said])


def record(size: SizeRecipe, folder: Path, result: dict[str, Any]) -> Path:
    """Store the times in the report file of ``folder``, one result for each kind of machine."""
    old = read_report(size, folder).get("speed", {})
    return update_report(size, folder, speed={**old, result["machine"]["device"]: result})


def recorded_text(recorded: dict[str, Any]) -> str:
    """The stored results, each under the name of its machine."""
    parts = []
    for device, result in recorded.items():
        threads, torch_version = result["machine"]["threads"], result["machine"]["torch"]
        head = f"{device}, {threads} thread(s), torch {torch_version}"
        parts.append(f"{head}\n{text(result)}")
    return "\n\n".join(parts)
