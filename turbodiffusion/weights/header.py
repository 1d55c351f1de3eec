"""What a checkpoint holds, read from its header alone: no torch, no tensor bytes.

A safetensors file starts with eight bytes of length and a JSON table; a ``.pth`` file is a zip
whose small ``data.pkl`` names every tensor (:mod:`.pickled` reads it without executing anything);
a sharded model is a folder with an ``*.index.json``. All of them become one :class:`Header`, with
the byte range of every tensor, checked against the length of the file.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turbodiffusion.errors import WeightsError
from turbodiffusion.weights import dtypes, sniff

HEADER_LIMIT = 100 * 1024 * 1024  # the safetensors library refuses larger headers too
COMPONENTS = ("transformer", "transformer_2", "vae", "text_encoder")


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: absolute ``offset`` and ``nbytes`` in ``file``.

    ``stride`` counts elements and is given only for a ``.pth`` tensor that is not contiguous;
    its bytes cannot be copied as one range.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int
    nbytes: int
    stride: tuple[int, ...] | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """Names and places of all tensors of one checkpoint.

    ``wrapper`` is the key of an outer dict such as ``state_dict`` in a ``.pth`` file;
    ``foreign`` lists the Python objects its pickle asks for that are not tensors (never created).
    """

    path: Path
    container: str
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    wrapper: str = ""
    foreign: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.tensors.items()}

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(info.nbytes for info in self.tensors.values())


def read_header(path: str | Path) -> Header:
    """Describe the tensors of a file, of a sharded folder, or of one folder of a diffusers model.

    Raises:
        WeightsError: see :func:`.sniff.container`; also truncated files, malformed headers,
            missing shards, and a diffusers folder that holds several networks.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if path.name.endswith(".index.json"):
        return _read_sharded(path)
    if sniff.container(path) == "pth":
        from turbodiffusion.weights import pickled

        return pickled.read_pth_header(path)
    tensors, metadata = _read_safetensors(path)
    return Header(path, "safetensors", _some(path, tensors), metadata, (path,))


def diffusers_components(path: str | Path) -> dict[str, Path]:
    """The network folders of a diffusers model, or an empty dict where there is no such model."""
    folder = Path(path)
    if not (folder / "model_index.json").is_file():
        return {}
    index = _json(folder / "model_index.json")
    wanted = [name for name in COMPONENTS if any(index.get(name) or ())]
    return {name: folder / name for name in wanted}


def _read_folder(folder: Path) -> Header:
    if components := diffusers_components(folder):
        raise WeightsError(
            "weights-several-networks",
            f"{folder} is a diffusers model with several networks: {', '.join(components)}.",
            f"Give one of them, for example {folder / next(iter(components))}.",
        )
    indices = sorted(folder.glob("*.index.json"))
    if len(indices) == 1:
        return _read_sharded(indices[0])
    files = sorted(f for s in ("*.safetensors", "*.pth", "*.pt") for f in folder.glob(s))
    if len(files) == 1:
        return read_header(files[0])
    what = ", ".join(f.name for f in (indices or files)[:6]) or "no checkpoint"
    raise WeightsError(
        "weights-folder",
        f"{folder} should hold one checkpoint or one *.index.json, but holds {what}.",
        "Give the path of the file itself.",
    )


def _read_sharded(index_file: Path) -> Header:
    weight_map = _json(index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _malformed(index_file, "it has no weight_map")
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    files = []
    for shard in sorted({str(name) for name in weight_map.values()}):
        # The index comes with the download: it must not point outside its folder.
        if Path(shard).name != shard:
            raise _malformed(index_file, f"it names the shard {shard!r} outside the folder")
        file = index_file.parent / shard
        if not file.is_file():
            raise WeightsError(
                "weights-shard-missing",
                f"{index_file.name} names {shard}, which is not in {index_file.parent}.",
                "Fetch the missing shard; `turbodiffusion download` resumes where it stopped.",
            )
        header = read_header(file)
        tensors.update(header.tensors)
        metadata.update(header.metadata)
        files.append(file)
    if lacking := [name for name in weight_map if name not in tensors]:
        raise _malformed(index_file, f"{len(lacking)} tensors, first {lacking[0]}, are in no shard")
    ordered = {name: tensors[name] for name in weight_map}
    return Header(index_file.parent, "sharded", ordered, metadata, tuple(files))


def _read_safetensors(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= HEADER_LIMIT:
            raise _malformed(path, f"its first 8 bytes {start!r} are no header length")
        if 8 + length > size:
            raise _truncated(path, 8 + length, size, "for the header alone")
        text = file.read(length)
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _malformed(path, f"its header is not JSON ({error})") from error
    if not isinstance(table, dict):
        raise _malformed(path, "its header is not a table")
    metadata = {str(k): str(v) for k, v in (table.pop("__metadata__", None) or {}).items()}
    tensors = {name: _entry(path, name, row, 8 + length) for name, row in table.items()}
    end = max((t.offset + t.nbytes for t in tensors.values()), default=8 + length)
    if end > size:
        raise _truncated(path, end, size, "by its header")
    # The format allows neither gaps nor overlaps; the library refuses what this lets pass.
    used = sum(t.nbytes for t in tensors.values())
    if used != size - 8 - length:
        raise _malformed(path, f"its tensors cover {used} of {size - 8 - length} bytes")
    return tensors, metadata


def _entry(path: Path, name: str, row: Any, base: int) -> TensorInfo:
    try:
        code, shape = row["dtype"], tuple(row["shape"])
        begin, end = row["data_offsets"]
        plain = all(type(n) is int and n >= 0 for n in (*shape, begin, end)) and begin <= end
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(path, f"the entry of {name!r} is incomplete") from error
    kind = dtypes.BY_CODE.get(code)
    if not plain or (kind and math.prod(shape) * kind.itemsize != end - begin):
        raise _malformed(path, f"{name!r}: {code} {list(shape)} does not fill bytes {begin}–{end}")
    return TensorInfo(shape, kind.name if kind else str(code), path, base + begin, end - begin)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        sniff_error = f"it is not readable JSON ({error})"
        raise _malformed(path, sniff_error) from error
    if not isinstance(value, dict):
        raise _malformed(path, "it is not a JSON table")
    return value


def _some(path: Path, tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    if not tensors:
        raise WeightsError("weights-no-tensors", f"{path} holds no tensors.", sniff.AGAIN)
    return tensors


def _malformed(path: Path, why: str) -> WeightsError:
    return WeightsError("weights-header", f"{path} is damaged: {why}.", sniff.AGAIN)


def _truncated(path: Path, wanted: int, size: int, by: str) -> WeightsError:
    return WeightsError(
        "weights-truncated",
        f"{path} has {size} bytes where {wanted} are needed {by}: the download is incomplete.",
        sniff.AGAIN,
    )
