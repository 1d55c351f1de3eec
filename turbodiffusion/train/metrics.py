"""Where the numbers of a run go: JSON lines always, TensorBoard and Weights & Biases when asked.

``metrics.jsonl`` has one object a report, with ``step`` first. When a run continues from a
checkpoint, the lines after it are removed: those steps are made again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from turbodiffusion.errors import SetupError

Values = Mapping[str, float]


class Writer(Protocol):
    """One destination."""

    def write(self, step: int, values: Values) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """``path``, cut back to what was written up to ``resume``."""

    def __init__(self, path: Path, resume: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        if path.exists():
            kept = [line for line in path.read_text("utf-8").splitlines() if _step(line) <= resume]
            partial = path.with_name(path.name + ".partial")
            partial.write_text("".join(line + "\n" for line in kept), "utf-8")
            os.replace(partial, path)

    def write(self, step: int, values: Values) -> None:
        plain = {k: v if math.isfinite(v) else None for k, v in values.items()}  # JSON has no NaN
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **plain}) + "\n")

    def close(self) -> None:
        """Nothing is held open."""


def _step(line: str) -> float:
    """The step of a line; a line that a kill has cut short counts as never written."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class TensorBoard:
    """Event files in ``folder``."""

    def __init__(self, folder: Path, resume: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", "tensorboard", "tensorboard=false") from error
        self.writer: Any = SummaryWriter(str(folder), purge_step=resume + 1)  # type: ignore[no-untyped-call]

    def write(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of ``project``; login and address are those of the ``wandb`` package."""

    def __init__(self, project: str, folder: Path, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("Weights & Biases", "wandb", "wandb=") from error
        self.run: Any = wandb.init(
            project=project, dir=str(folder), id=folder.resolve().name, resume="allow",
            config=config,
        )  # fmt: skip

    def write(self, step: int, values: Values) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


def _missing(what: str, package: str, off: str) -> SetupError:
    return SetupError(
        "train-package",
        f"{what} was asked for, but the package {package} is not installed.",
        f"Run `pip install {package}`, or train without it: --set {off}",
    )
