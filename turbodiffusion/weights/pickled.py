"""Names, shapes and places of the tensors in a ``.pth`` file, without running its pickle.

``torch.save`` writes an uncompressed zip: ``data.pkl`` describes the tensors, ``data/N`` holds the
bytes of storage N. The pickle is a program; the reader here runs it with every global replaced by
something inert: the four constructors torch itself uses record what they are given, anything else
becomes an empty object whose name is noted. Nothing of the file's choice is imported or called.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from turbodiffusion.errors import WeightsError
from turbodiffusion.weights import dtypes, sniff
from turbodiffusion.weights.header import Header, TensorInfo

PICKLE_LIMIT = 256 * 1024 * 1024
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


class _Storage(NamedTuple):
    dtype: str  # "" for an untyped storage: the tensor names its own
    key: str
    elements: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str


class _DTypeName(str):
    """The name of a torch dtype that the pickle refers to."""


class _StorageName(str):
    """The name of a torch storage class that the pickle refers to."""


class _Table(dict):  # type: ignore[type-arg]
    """Stands for ``collections.OrderedDict``: keeps order, swallows attributes (``_metadata``)."""

    def __setstate__(self, state: object) -> None:
        del state


class _Inert:
    """Stands for any object this reader does not know; accepts everything, does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> _Inert:
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass


class _Constructor:
    """A function of this file that the pickle may call but, unlike a bare one, not alter."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a pickle that rewrites its constructors")


def _rebuild(storage: Any, offset: int, shape: Any, stride: Any, *rest: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    named = [item for item in rest if isinstance(item, _DTypeName)]
    dtype = str(named[0]) if named else storage.dtype
    return _Tensor(storage, int(offset), tuple(shape), tuple(stride), dtype)


def _parameter(data: Any, *rest: Any) -> Any:
    return data


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Table,
    ("torch._utils", "_rebuild_tensor"): _Constructor(_rebuild),
    ("torch._utils", "_rebuild_tensor_v2"): _Constructor(_rebuild),
    ("torch._utils", "_rebuild_tensor_v3"): _Constructor(_rebuild),
    ("torch._utils", "_rebuild_parameter"): _Constructor(_parameter),
    ("torch", "Size"): tuple,
}


class _StubUnpickler(pickle.Unpickler):
    """Runs a pickle in which no global means what it says."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.foreign: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return _StorageName(name)
        if module == "torch" and name in dtypes.BY_NAME:
            return _DTypeName(name)
        if f"{module}.{name}" not in self.foreign:
            self.foreign.append(f"{module}.{name}")
        return _Inert

    def persistent_load(self, pid: Any) -> _Storage:
        tag, kind, key, _location, elements = pid
        if tag != "storage" or not isinstance(kind, _StorageName):
            raise pickle.UnpicklingError(f"unknown reference {tag!r}")
        legacy = dtypes.BY_STORAGE.get(str(kind))
        return _Storage(legacy.name if legacy else "", str(key), int(elements))


def read_pth_header(path: Path) -> Header:
    """Describe a ``.pth``/``.pt`` file. Its pickle is read by a stub and executes nothing.

    Raises:
        WeightsError: truncated or damaged zip, compressed or big-endian storages, no tensors.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise WeightsError(
            "weights-truncated",
            f"{path} ({path.stat().st_size} bytes) ends before its table of contents: "
            "the download is incomplete.",
            sniff.AGAIN,
        ) from error
    # A directory of random bytes can ask for any version, encoding or offset of the zip format.
    except Exception as error:
        raise _damaged(path, f"its zip directory cannot be read ({error})") from error
    with archive:
        root, tree, foreign = _read_pickle(path, archive)
        wrapper, flat = _unwrap(path, tree)
        records = {info.filename: info for info in archive.infolist()}
        starts: dict[str, int] = {}
        tensors = {}
        with path.open("rb") as file:
            for name, tensor in flat.items():
                record = records.get(f"{root}data/{tensor.storage.key}")
                if record is None:
                    raise _damaged(path, f"the bytes of {name!r} are not in the archive")
                if record.filename not in starts:
                    starts[record.filename] = _data_start(path, file, record)
                tensors[name] = _place(path, name, tensor, record, starts[record.filename])
    return Header(path, "pth", tensors, {}, (path,), wrapper, foreign)


def _read_pickle(path: Path, archive: zipfile.ZipFile) -> tuple[str, Any, tuple[str, ...]]:
    names = [n for n in archive.namelist() if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(names) != 1:
        raise WeightsError(
            "weights-format",
            f"{path} is a zip archive without a data.pkl, so torch.save did not write it.",
            "Unpack it and give the checkpoint inside.",
        )
    root = names[0][: -len("data.pkl")]
    if archive.getinfo(names[0]).file_size > PICKLE_LIMIT:
        raise _damaged(path, "its pickle is larger than any list of tensors")
    try:
        order = (
            archive.read(root + "byteorder") if root + "byteorder" in archive.NameToInfo else b""
        )
        if order not in (b"", b"little"):
            raise _damaged(path, f"its numbers are {order!r}-endian")
        reader = _StubUnpickler(archive.read(names[0]))
        return root, reader.load(), tuple(reader.foreign)
    except WeightsError:
        raise
    # A stub tree may fail in any way a damaged pickle likes; all of them mean the same.
    except Exception as error:
        raise _damaged(path, f"its pickle cannot be read ({error})") from error


def _unwrap(path: Path, tree: Any) -> tuple[str, dict[str, _Tensor]]:
    """The mapping name → tensor, at the top level or under one of :data:`WRAPPERS`."""
    if isinstance(tree, Mapping):
        for key in ("", *WRAPPERS):
            table = tree.get(key) if key else tree
            if isinstance(table, Mapping):
                flat = {str(k): v for k, v in table.items() if isinstance(v, _Tensor)}
                if flat:
                    return key, flat
    raise WeightsError(
        "weights-no-tensors",
        f"{path} holds {type(tree).__name__.strip('_')} data but no table of tensors.",
        "Give a state dict: a mapping from parameter names to tensors.",
    )


def _data_start(path: Path, file: Any, record: zipfile.ZipInfo) -> int:
    """First byte of a stored record: its local header has lengths the directory lacks."""
    if record.compress_type != zipfile.ZIP_STORED:
        raise WeightsError(
            "weights-compressed",
            f"{path} was packed with compression, so its tensors cannot be mapped into memory.",
            "Use the original file, or save it again with torch.save.",
        )
    file.seek(record.header_offset)
    local = file.read(30)
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise _damaged(path, f"the record {record.filename} is not where the directory says")
    name_length, extra_length = struct.unpack("<HH", local[26:30])
    return record.header_offset + 30 + name_length + extra_length


def _place(
    path: Path, name: str, tensor: _Tensor, record: zipfile.ZipInfo, start: int
) -> TensorInfo:
    kind = dtypes.BY_NAME.get(tensor.dtype)
    if kind is None:
        raise _damaged(path, f"{name!r} has an unknown element type")
    shape, stride = tensor.shape, tensor.stride
    numbers = (*shape, *stride, tensor.offset)
    if len(shape) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
        raise _damaged(path, f"{name!r} has shape {shape} and stride {stride}")
    elements = math.prod(shape)
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if elements else 0
    if (tensor.offset + reach) * kind.itemsize > record.file_size:
        raise _damaged(path, f"{name!r} {list(shape)} reaches beyond its {record.file_size} bytes")
    offset = start + tensor.offset * kind.itemsize
    contiguous = _is_contiguous(shape, stride)
    nbytes = elements * kind.itemsize
    return TensorInfo(shape, kind.name, path, offset, nbytes, None if contiguous else stride)


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for n, s in zip(reversed(shape), reversed(stride), strict=True):
        if n != 1 and s != expected:
            return False
        expected *= n
    return True


def _damaged(path: Path, why: str) -> WeightsError:
    return WeightsError("weights-header", f"{path} is damaged: {why}.", sniff.AGAIN)
