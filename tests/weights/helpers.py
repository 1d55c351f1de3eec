"""Small files for the tests: raw zips with hand-made pickles, headers without a file."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

from turbodiffusion.weights.header import Header, TensorInfo
from turbodiffusion.weights.spec import Spec


def header_of(spec: Spec, name: str = "model.safetensors", **metadata: str) -> Header:
    """A header with the tensors of ``spec``, backed by no file."""
    path = Path(name)
    tensors = {k: TensorInfo(t.shape, t.dtype, path, 0, t.nbytes) for k, t in spec.items()}
    return Header(path, "safetensors", tensors, metadata, (path,))


def write_pickle_zip(path: Path, data: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """A ``.pth`` whose pickle is ``data`` as it stands."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, value in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", value)
        archive.writestr("archive/version", "3\n")
    return path


class Call:
    """An object whose unpickling calls ``function(*arguments)``."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def torch_pickle(value: object) -> bytes:
    """The ``data.pkl`` that torch.save writes for ``value``."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_module=pickle)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read("archive/data.pkl")


def write_raw_safetensors(path: Path, table: dict[str, object], data: bytes) -> Path:
    """A safetensors file with exactly this table, right or wrong."""
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def sparse_safetensors(path: Path, spec: Spec) -> Path:
    """A file of the full size whose tensor bytes were never written (zeros, no disk blocks)."""
    from turbodiffusion.weights.dtypes import BY_NAME

    table, end = {}, 0
    for name, tensor in spec.items():
        code = BY_NAME[tensor.dtype].code
        offsets = [end, end := end + tensor.nbytes]
        table[name] = {"dtype": code, "shape": tensor.shape, "data_offsets": offsets}
    write_raw_safetensors(path, table, b"")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + end)
    return path
