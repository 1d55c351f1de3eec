"""Checkpoints of PyTorch's distributed format: the newest of a run, and writing one.

Networks stand under the prefixes ``net.``, ``net_ema.`` (the average, which is what gets exported)
and ``net_fake_score.``. They are read by :mod:`.sharded_reader`, which runs nothing that a file
contains.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from turbodiffusion.errors import CapacityError, UsageError, WeightsError
from turbodiffusion.weights.check import require_complete, require_kind
from turbodiffusion.weights.detect import describe
from turbodiffusion.weights.header import Header, TensorInfo
from turbodiffusion.weights.spec import spec_bytes
from turbodiffusion.weights.stream import FileTensors, Tensors, whole
from turbodiffusion.weights.write import require_space

INDEX = ".metadata"
LATEST = "latest_checkpoint.txt"
PREFIXES = ("net_ema.", "net.", "")
"""Which network is taken, in this order."""


def find_distributed(path: Path) -> Path | None:
    """The folder of shards in ``path``: itself, ``model`` of a checkpoint, or that of the newest
    checkpoint of a run; None where there is none."""
    for folder in (path, path / "checkpoints"):
        if (folder / LATEST).is_file():
            path = folder / (folder / LATEST).read_text("utf-8").strip()
            break
    return next((one for one in (path, path / "model") if (one / INDEX).is_file()), None)


def open_distributed(folder: Path) -> Tensors:
    """The average in a checkpoint, or else its network.

    Raises:
        WeightsError: it is damaged, or holds no DiT.
    """
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from turbodiffusion.weights.sharded_reader import SafeReader

    try:
        stored = SafeReader(folder).read_metadata().state_dict_metadata
    except Exception as error:  # pickle and torch raise kinds of their own
        raise _damaged(folder, error) from error
    infos = {
        key: TensorInfo(tuple(one.size), str(one.properties.dtype).removeprefix("torch."), folder,
                        0, one.size.numel() * one.properties.dtype.itemsize)
        for key, one in stored.items() if isinstance(one, TensorStorageMetadata)
    }  # fmt: skip
    prefix = next(p for p in PREFIXES if any(key.startswith(p) for key in infos) or not p)
    chosen = {key: info for key, info in infos.items() if key.startswith(prefix)}
    renamed = {key.removeprefix(prefix): info for key, info in chosen.items()}
    header = Header(folder, "distributed", renamed, {}, (folder,))
    found = describe(header)
    require_kind(found, "dit")
    require_complete(found)
    return _Distributed(header, prefix)


class _Distributed(FileTensors):
    def __init__(self, header: Header, prefix: str) -> None:
        super().__init__(header)
        self.prefix = prefix
        self._last: tuple[str, Tensor] = "", torch.empty(0)

    def elements(self, name: str, start: int, stop: int) -> Tensor:
        if self._last[0] != name:
            self._last = name, self._load(name)
        return self._last[1][start:stop]

    def _load(self, name: str) -> Tensor:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException

        from turbodiffusion.weights.sharded_reader import SafePlanner, SafeReader

        info = self.header.tensors[self.keys[name]]
        target = torch.empty(info.shape, dtype=getattr(torch, info.dtype))
        try:
            with _alone():
                wanted = {self.prefix + self.keys[name]: target}
                # Each process reads what it needs: without no_dist all would have to take part.
                dcp.load(
                    wanted, storage_reader=SafeReader(info.file), planner=SafePlanner(),
                    no_dist=True,
                )  # fmt: skip
        # What torch raises for a broken shard is no Exception.
        except (Exception, CheckpointException) as error:
            raise _damaged(info.file, error) from error
        return target.flatten()


def save_distributed(source: Tensors, folder: Path, prefix: str = "net.") -> None:
    """Write ``source`` as a distributed checkpoint of one process; it must fit into memory.

    Raises:
        UsageError: the folder exists. CapacityError: the disk is full.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    if folder.exists():
        raise UsageError(
            "convert-folder-exists", f"{folder} exists already.", "Choose another name."
        )
    require_space(folder, spec_bytes(source.spec))
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _alone():
            tensors = {prefix + name: whole(source, name) for name in source.spec}
            dcp.save(tensors, checkpoint_id=partial)
        os.replace(partial, folder)
    except (Exception, CheckpointException) as error:
        raise CapacityError(
            "convert-distributed",
            f"{folder} could not be written: {error}.",
            "Free some space or memory, or write to another disk.",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _alone() -> Iterator[None]:
    """torch mentions that no process group exists; one process needs none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed.*unavailable.*")
        yield


def _damaged(folder: Path, error: BaseException) -> WeightsError:
    why = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return WeightsError(
        "weights-distributed",
        f"The checkpoint {folder} cannot be read: {why}.",
        "Give an earlier checkpoint of the run, or let the run write a new one.",
    )
