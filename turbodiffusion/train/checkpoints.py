"""Checkpoints in PyTorch's distributed format, complete or absent, the last few kept.

::

    checkpoints/iter_000000500/         named so only when everything in it is on the disk
        model/                          networks and their average, in shards (*.distcp)
        optim/                          moments of the optimisers, in shards
        trainer.json                    iteration, counters, position in the data
    checkpoints/latest_checkpoint.txt   the newest one's name

A save is written to ``iter_….partial`` and renamed, so a kill at any moment costs at most what was
done since the last save, and a disk that fills up costs nothing that was there. Every process
writes its own shards; a checkpoint can be read by any number of processes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from turbodiffusion.errors import CapacityError, TurboDiffusionError, WeightsError
from turbodiffusion.parallel.ranks import Ranks
from turbodiffusion.weights.sharded_reader import SafePlanner, SafeReader

LATEST = "latest_checkpoint.txt"
TRAINER = "trainer.json"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_SPACE_TEXT = (
    "No space left", "Disk quota exceeded", "File too large",
    "unexpected pos",  # torch's writer of archives found fewer bytes written than it gave
)  # fmt: skip
_FAILURES = (Exception, CheckpointException)
"""The latter carries the errors of all processes and is no Exception."""


class Checkpoints:
    """The checkpoints of a run in ``folder``; all processes call every method together."""

    def __init__(self, folder: Path, *, ranks: Ranks, keep: int) -> None:
        self.folder, self.ranks, self.keep = folder, ranks, keep

    def newest(self) -> Path | None:
        """The last complete checkpoint, as the first process sees it."""
        complete = self._complete() if self.ranks.first else []
        name = self.ranks.from_first(complete[-1].name if complete else "")
        return self.folder / name if name else None

    def save(self, iteration: int, tensors: dict[str, Any], trainer: dict[str, Any]) -> Path:
        """Write a checkpoint and remove those that are older than the last ``keep``.

        Args:
            tensors: folder name → nested tensors of it. trainer: JSON values.

        Raises:
            CapacityError: it does not fit on the disk. TurboDiffusionError: it cannot be written
                for another reason. The checkpoints before it are untouched.
        """
        final = self.folder / f"iter_{iteration:09d}"
        partial = final.with_name(final.name + ".partial")
        self._prepare(partial, tensors)
        try:
            with warnings.catch_warnings():
                # A group of one saves without asking itself; torch mentions that.
                warnings.filterwarnings("ignore", message=".*torch.distributed.*unavailable.*")
                for part, values in tensors.items():
                    dcp.save(values, checkpoint_id=partial / part)
            failure = self._finish(partial, final, trainer) if self.ranks.first else ""
        except _FAILURES as error:
            if self.ranks.first:
                shutil.rmtree(partial, ignore_errors=True)
            raise self._explained(error) from error
        if failure := self.ranks.from_first(failure):
            raise self._full(failure)
        return final

    def load(self, path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
        """Fill ``tensors`` in place; returns what was saved as ``trainer``.

        Raises:
            WeightsError: the checkpoint is damaged, of other networks, or asks for code to run.
        """
        try:
            for part, values in tensors.items():
                dcp.load(values, storage_reader=SafeReader(path / part), planner=SafePlanner())
            trainer: dict[str, Any] = json.loads((path / TRAINER).read_text("utf-8"))
            return trainer
        except _FAILURES as error:
            raise WeightsError(
                "train-checkpoint",
                f"The checkpoint {path} cannot be continued from: {_reason(error)}.",
                "Continue with the settings it was made with, or remove that folder to go back to "
                "the one before it, or give another folder with --out.",
            ) from error

    def _complete(self) -> list[Path]:
        found = self.folder.glob("iter_*")
        return sorted(p for p in found if re.fullmatch(r"iter_\d{9}", p.name))

    def _sweep(self) -> None:
        """Remove what a kill has left."""
        for partial in self.folder.glob("*.partial"):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()

    def _finish(self, partial: Path, final: Path, trainer: dict[str, Any]) -> str:
        """Give a written checkpoint its name; returns why that failed, or nothing."""
        try:
            _write(partial / TRAINER, json.dumps(trainer, indent=1))
            _sync(partial)
            if final.exists():  # of a run that went back to an earlier checkpoint
                shutil.rmtree(final)
            os.replace(partial, final)
            latest = self.folder / LATEST
            _write(latest.with_name(LATEST + ".partial"), final.name + "\n")
            os.replace(latest.with_name(LATEST + ".partial"), latest)
            _sync(self.folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            return str(error)
        for old in self._complete()[: -self.keep]:
            # Half removed, it must not look complete; the next save sweeps what is left.
            with suppress(OSError):
                os.replace(old, aside := old.with_name(old.name + ".partial"))
                shutil.rmtree(aside)
        return ""

    def _prepare(self, partial: Path, tensors: dict[str, Any]) -> None:
        """Make the folder and compare with the free space before a byte is written.

        Only the first process can fail here, and tells the others.
        """
        needed = torch.tensor(float(sum(_local_bytes(tensors))), device=self.ranks.device)
        if self.ranks.world > 1:
            dist.all_reduce(needed)
        full = other = ""
        if self.ranks.first:
            try:
                self._sweep()
                partial.mkdir(parents=True)
                free = shutil.disk_usage(self.folder).free
                if free < needed:
                    self._sweep()
                    full = f"{needed / 1e9:.3g} GB are needed and {free / 1e9:.3g} GB are free"
            except OSError as error:
                full, other = (str(error), "") if _is_full(error) else ("", str(error))
        if full := self.ranks.from_first(full):
            raise self._full(full)
        if other := self.ranks.from_first(other):
            raise self._failed(other)

    def _explained(self, error: BaseException) -> TurboDiffusionError:
        cause: BaseException | None = error
        while cause is not None and not _is_full(cause):
            cause = cause.__cause__ or cause.__context__
        text = str(error)
        if cause is not None or any(words in text for words in _NO_SPACE_TEXT):
            return self._full(_reason(cause or error))
        return self._failed(_reason(error))

    def _failed(self, why: str) -> TurboDiffusionError:
        return TurboDiffusionError(
            "train-save",
            f"The checkpoint could not be written to {self.folder}: {why}.",
            "The checkpoints before it are untouched; the same command goes on from the last one.",
        )

    def _full(self, why: str) -> CapacityError:
        return CapacityError(
            "train-disk-full",
            f"The checkpoint does not fit on the disk of {self.folder}: {why}.",
            "Free some space, or keep fewer checkpoints (--set keep=1); the same command goes on "
            "from the last complete one.",
        )


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _NO_SPACE


def _reason(error: BaseException) -> str:
    """The line of an error that says most: that of a full disk, or the last of a traceback."""
    if isinstance(error, CheckpointException):
        error = next((failure[0] for failure in error.failures.values()), error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if any(words in line for words in _NO_SPACE_TEXT)]
    return (telling or lines[:1] or [type(error).__name__])[0].rstrip(".")


def _local_bytes(values: Any) -> Iterator[int]:
    if isinstance(values, dict):
        for value in values.values():
            yield from _local_bytes(value)
    elif isinstance(values, Tensor):
        local = values.to_local() if isinstance(values, DTensor) else values
        yield local.numel() * local.element_size()


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """The names in a folder reach the disk; Windows cannot be asked to."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
