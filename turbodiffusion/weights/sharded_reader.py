"""Distributed checkpoints are read without running what they contain.

PyTorch loads two things of its distributed format with the plain pickle, which calls whatever the
file names: the index ``.metadata``, and values that are no tensors. Here both are restricted. The
index may name the classes that an index is made of and nothing else; other values are loaded with
``weights_only``. Tensors always were.
"""

from __future__ import annotations

import io
import pathlib
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint import metadata as parts
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.serialization import _get_layout

_KNOWN: dict[tuple[str, str], Any] = {
    **{
        (parts.__name__, name): getattr(parts, name)
        for name in (*parts.__all__, "_MEM_FORMAT_ENCODING")
    },
    (_StorageInfo.__module__, "_StorageInfo"): _StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("collections", "OrderedDict"): dict,
}
_PATHS = {"PosixPath": pathlib.PurePosixPath, "WindowsPath": pathlib.PureWindowsPath}
"""The folder it was written to, which another system could not make a real path of."""


class _Index(pickle.Unpickler):
    """Makes the objects of an index; every other global ends it."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module.partition(".")[0] == "pathlib" and name in _PATHS:
            return _PATHS[name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")


class SafeReader(FileSystemReader):
    """Reads the shards in a folder."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index.

        Raises:
            UnpicklingError: it names anything but the parts of an index.
        """
        path = self._get_metadata_path(kwargs.get("rank"))
        with self.fs.create_stream(path, "rb") as file:
            found = _Index(file).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError("it holds no index")
        found.storage_meta = found.storage_meta or StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


class SafePlanner(DefaultLoadPlanner):
    """Loads a state dict; what is no tensor must be plain values."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)  # raises before anything foreign is called
        value.seek(0)
        super().load_bytes(read_item, value)
