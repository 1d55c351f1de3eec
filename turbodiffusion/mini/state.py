"""Where a training stage stands: saved whole, replaced atomically, found again after a kill."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch

from turbodiffusion.errors import WeightsError
from turbodiffusion.mini.optim import MasterOptimizer
from turbodiffusion.mini.recipe import Stage


class StageClock:
    """Counts steps and seconds of a stage over all its runs, and says when to stop or save."""

    def __init__(
        self, stage: Stage, run_minutes: float | None = None, save_seconds: float = 60
    ) -> None:
        self.stage = stage
        self.step = 0
        self.before = 0.0
        self.run_seconds = float("inf") if run_minutes is None else run_minutes * 60
        self.save_seconds = save_seconds
        self.start = self.last_save = time.monotonic()

    @property
    def run_elapsed(self) -> float:
        return time.monotonic() - self.start

    @property
    def elapsed(self) -> float:
        """Seconds of training over all runs of the stage."""
        return self.before + self.run_elapsed

    @property
    def progress(self) -> float:
        """Share of the budget that is used, 0 … 1."""
        return max(self.step / self.stage.steps, self.elapsed / (60 * self.stage.minutes))

    @property
    def done(self) -> bool:
        return self.progress >= 1.0

    @property
    def pause(self) -> bool:
        """The time given to this run is over, the stage may not be."""
        return self.run_elapsed >= self.run_seconds

    def due(self) -> bool:
        """Whether a save is due; asking resets the interval."""
        if time.monotonic() - self.last_save < self.save_seconds:
            return False
        self.last_save = time.monotonic()
        return True


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` so that a kill at any moment leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())  # the new name must not reach the disk before the bytes
    os.replace(partial, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The saved state, or None when the stage has not begun."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except Exception as error:
        raise WeightsError(
            "mini-state-damaged",
            f"The training state {path} cannot be read ({error}).",
            "Delete the file to start the stage again.",
        ) from error


def restore(
    path: Path, optim: MasterOptimizer, clock: StageClock, latents: str = ""
) -> dict[str, Any]:
    """Continue from the state in ``path``: fills the two and returns it, or {} without a file.

    Args:
        latents: what :func:`~turbodiffusion.mini.export.latents_id` says now, for stages that
            depend on it.

    Raises:
        WeightsError: the file cannot be read, or is of another size, stage or autoencoder.
    """
    state = load_state(path)
    if state is None:
        return {}
    try:
        optim.load_state_dict(state["optim"])
        clock.step, clock.before = int(state["step"]), float(state["seconds"])
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise WeightsError(
            "mini-state-other",
            f"The training state {path} is not of this stage and size ({error}).",
            "Give another folder with --out, or delete the file to start again.",
        ) from error
    if state.get("latents", latents) != latents:
        raise WeightsError(
            "mini-state-latents",
            f"The training state {path} belongs to the latents of another autoencoder.",
            "Put that autoencoder back, or delete the file to train this stage again.",
        )
    return state


class Log:
    """One JSON line a report, to a file and the terminal."""

    def __init__(self, path: Path, quiet: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.quiet = quiet

    def write(self, **values: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            plain = {k: None if _broken(v) else v for k, v in values.items()}
            file.write(json.dumps(plain) + "\n")
        if not self.quiet:
            shown = (
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
            )
            print("  ".join(shown), flush=True)


def _broken(value: Any) -> bool:
    """NaN and infinities, which JSON does not have."""
    return isinstance(value, float) and not math.isfinite(value)
