"""Write safetensors and ``.pth`` files as a stream, one tensor at a time.

Both formats put a small table beside plain tensor bytes, so a 28 GB model is written with a few
megabytes of memory and without torch. A file appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from turbodiffusion.errors import CapacityError, WeightsError
from turbodiffusion.weights.dtypes import BY_NAME
from turbodiffusion.weights.spec import TensorSpec, spec_bytes

ALIGNMENT = 64  # torch.save's default; lets any element type be mapped in place
Source = Callable[[str], Iterable[bytes | memoryview]]


def write_checkpoint(
    path: Path,
    spec: Mapping[str, TensorSpec],
    source: Source,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a ``.safetensors`` or a flat ``.pth``/``.pt`` file, by the extension of ``path``.

    Args:
        spec: name → shape and type, in the order of the file.
        source: name → its bytes in pieces (little endian, contiguous).
        metadata: stored in safetensors; a ``.pth`` file has no place for it.

    Raises:
        CapacityError: the disk has no room. WeightsError: another extension.
    """
    write = {".safetensors": _safetensors, ".pth": _pth, ".pt": _pth}.get(path.suffix)
    if write is None:
        raise WeightsError(
            "weights-format",
            f"A checkpoint cannot be written as {path.name!r}.",
            "Let the name end in .safetensors or .pth.",
        )
    require_space(path, spec_bytes(spec) + 1024 * len(spec))
    with partial(path) as temporary:
        write(temporary, spec, source, metadata or {})


def require_space(path: Path, needed: int) -> None:
    """Raise CapacityError unless the disk of ``path`` has ``needed`` bytes free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise CapacityError(
            "weights-disk",
            f"{path.name} needs {needed / 1e9:.2f} GB in {path.parent}, "
            f"where {free / 1e9:.2f} GB are free.",
            "Free some space or write to another disk.",
        )


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that becomes it on success and vanishes on failure."""
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _pieces(name: str, spec: TensorSpec, source: Source) -> Iterator[bytes | memoryview]:
    total = 0
    for piece in source(name):
        total += memoryview(piece).nbytes
        yield piece
    if total != spec.nbytes:
        raise ValueError(f"{name}: {total} bytes given for {spec}")


def _safetensors(
    path: Path, spec: Mapping[str, TensorSpec], source: Source, meta: Mapping[str, str]
) -> None:
    # Wide types first, so that every tensor starts at a multiple of its element size; the table
    # keeps the order of the model.
    by_width = sorted(spec, key=lambda name: -BY_NAME[spec[name].dtype].itemsize)
    offsets, end = {}, 0
    for name in by_width:
        offsets[name] = [end, end := end + spec[name].nbytes]
    table: dict[str, object] = {"__metadata__": dict(meta)} if meta else {}
    for name, tensor in spec.items():
        code = BY_NAME[tensor.dtype].code
        table[name] = {"dtype": code, "shape": tensor.shape, "data_offsets": offsets[name]}
    header = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-(len(header) + 8) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name in by_width:
            for piece in _pieces(name, spec[name], source):
                file.write(piece)


def _pth(
    path: Path, spec: Mapping[str, TensorSpec], source: Source, meta: Mapping[str, str]
) -> None:
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def put(name: str, size: int, pieces: Iterable[bytes | memoryview]) -> None:
            info = zipfile.ZipInfo(f"archive/{name}")
            info.file_size = size
            wide = size * 1.05 > zipfile.ZIP64_LIMIT  # zipfile's own rule for the 20 byte field
            start = file.tell() + 30 + len(info.filename.encode()) + (20 if wide else 0) + 4
            info.extra = _padding(-start % ALIGNMENT)
            with archive.open(info, "w", force_zip64=wide) as record:
                for piece in pieces:
                    record.write(piece)

        table = _pickle(spec)
        put("data.pkl", len(table), [table])
        put("byteorder", 6, [b"little"])
        for number, (name, tensor) in enumerate(spec.items()):
            put(f"data/{number}", tensor.nbytes, _pieces(name, tensor, source))
        put("version", 2, [b"3\n"])


def _padding(count: int) -> bytes:
    """A zip extra field of ``count + 4`` bytes with the id torch uses for alignment."""
    return b"FB" + struct.pack("<H", count) + b"Z" * count


def _pickle(spec: Mapping[str, TensorSpec]) -> bytes:
    """The pickle ``torch.save`` writes for ``{name: tensor}``, from opcodes, without torch."""
    out = [pickle.PROTO, b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    for number, (name, tensor) in enumerate(spec.items()):
        storage = BY_NAME[tensor.dtype].storage
        if not storage:
            raise WeightsError(
                "weights-format",
                f"{name} is {tensor.dtype}, which the .pth layout has no storage for.",
                "Write a .safetensors file instead.",
            )
        strides: list[int] = []
        step = 1
        for n in reversed(tensor.shape):
            strides.insert(0, step)
            step *= max(n, 1)
        out += [
            _text(name), _global("torch._utils", "_rebuild_tensor_v2"), pickle.MARK, pickle.MARK,
            _text("storage"), _global("torch", storage), _text(str(number)), _text("cpu"),
            _number(tensor.elements), pickle.TUPLE, pickle.BINPERSID, _number(0),
            _numbers(tensor.shape), _numbers(strides), pickle.NEWFALSE,
            _global("collections", "OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE,
            pickle.TUPLE, pickle.REDUCE,
        ]  # fmt: skip
    return b"".join([*out, pickle.SETITEMS, pickle.STOP])


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    raw = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw


def _number(value: int) -> bytes:
    raw = value.to_bytes(8, "little", signed=True)
    return pickle.LONG1 + b"\x08" + raw


def _numbers(values: Iterable[int]) -> bytes:
    return pickle.MARK + b"".join(_number(v) for v in values) + pickle.TUPLE
