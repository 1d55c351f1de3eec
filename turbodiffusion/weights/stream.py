"""Networks as streams of elements, so that files of any size are changed in constant memory.

A :class:`Tensors` knows names, shapes and types beforehand and hands out ranges of elements on
demand. A file is one (:class:`FileTensors`), a checkpoint of a run is one (:mod:`.distributed`),
and so is a merge or a quantisation of others: a chain of them is computed while it is written, a
stripe of rows at a time. Elements are read, not mapped: mapped pages would count as memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.weights.check import require_complete, require_kind
from turbodiffusion.weights.convert import description_metadata
from turbodiffusion.weights.detect import Description, describe, network_spec, released_shapes
from turbodiffusion.weights.header import Header, TensorInfo, read_header
from turbodiffusion.weights.layouts import resolve
from turbodiffusion.weights.spec import PROJ_L, QUANT_BLOCK, Spec, TensorSpec
from turbodiffusion.weights.write import write_checkpoint

STRIPE = 4 * 1024 * 1024  # elements of a stripe, at least QUANT_BLOCK rows


class Tensors(Protocol):
    """A network under released names."""

    spec: Spec
    metadata: Mapping[str, str]

    def elements(self, name: str, start: int, stop: int) -> Tensor:
        """Elements ``start`` … ``stop`` of the flattened tensor, one axis, on the CPU."""
        ...


def whole(source: Tensors, name: str) -> Tensor:
    """One tensor in its shape."""
    spec = source.spec[name]
    return source.elements(name, 0, spec.elements).reshape(spec.shape)


def stripes(spec: TensorSpec) -> Iterator[tuple[int, int]]:
    """Ranges of elements that are whole blocks of :data:`QUANT_BLOCK` rows, about
    :data:`STRIPE` elements each."""
    block = QUANT_BLOCK * max(1, math.prod(spec.shape[1:]))
    step = block * max(1, STRIPE // block)
    for start in range(0, spec.elements, step):
        yield start, min(start + step, spec.elements)


class FileTensors:
    """A checkpoint file (or sharded folder), under released names.

    Args:
        header: of :func:`.header.read_header`.
    """

    def __init__(self, header: Header) -> None:
        layout = resolve(header.shapes, header.wrapper)
        shapes = released_shapes(header, layout)
        self.header, self.keys = header, layout.names
        self.metadata: Mapping[str, str] = header.metadata
        self.spec: Spec = {
            name: TensorSpec(shapes[name], header.tensors[key].dtype)
            for name, key in layout.names.items()
        }

    def elements(self, name: str, start: int, stop: int) -> Tensor:
        return read_elements(self.header, self.keys[name], start, stop)


class Converted:
    """The floating tensors of ``source`` in the element types that released files have."""

    def __init__(self, source: Tensors) -> None:
        self.source, self.metadata = source, source.metadata
        released = released_spec(source)
        self.spec: Spec = {
            name: TensorSpec(one.shape, released[name].dtype if name in released else one.dtype)
            for name, one in source.spec.items()
        }

    def elements(self, name: str, start: int, stop: int) -> Tensor:
        dtype: torch.dtype = getattr(torch, self.spec[name].dtype)
        return self.source.elements(name, start, stop).to(dtype)


def read_elements(header: Header, key: str, start: int, stop: int) -> Tensor:
    """A range of a stored tensor, by its key in the file."""
    info = header.tensors[key]
    dtype: torch.dtype = getattr(torch, info.dtype)
    if info.stride is not None:
        from turbodiffusion.weights.read import Checkpoint

        return Checkpoint(header).tensor(key).flatten()[start:stop]
    if start == stop:
        return torch.empty(0, dtype=dtype)
    with info.file.open("rb") as file:
        file.seek(info.offset + start * dtype.itemsize)
        data = bytearray((stop - start) * dtype.itemsize)
        if file.readinto(data) != len(data):
            raise OSError(f"{info.file} became shorter while it was read")
    return torch.frombuffer(data, dtype=dtype)


def identify(source: Tensors, path: Path = Path("network.safetensors")) -> Description:
    """What the network is, from its names and shapes."""
    tensors = {
        name: TensorInfo(one.shape, one.dtype, path, 0, one.nbytes)
        for name, one in source.spec.items()
    }
    return describe(Header(path, path.suffix[1:], tensors, dict(source.metadata), (path,)))


def released_spec(source: Tensors) -> Spec:
    """The complete list of tensors that the released file of this network has."""
    found = identify(source)
    require_kind(found, "dit")
    assert found.config is not None
    sla = any(PROJ_L in name for name in source.spec)
    return network_spec(found.config, found.quantized, sla)


def open_network(path: str | Path) -> Tensors:
    """A DiT in a file, a sharded folder, or the newest checkpoint of a training run.

    Raises:
        WeightsError: it is none, damaged or incomplete.
    """
    from turbodiffusion.weights.distributed import find_distributed, open_distributed

    if checkpoint := find_distributed(Path(path)):
        return open_distributed(checkpoint)
    header = read_header(path)
    found = describe(header)
    require_kind(found, "dit")
    require_complete(found)
    return FileTensors(header)


def save(
    source: Tensors, path: Path, metadata: Mapping[str, str] | None = None, *, force: bool = False
) -> Description:
    """Write ``source`` as ``.safetensors`` or ``.pth``; returns what was written.

    Raises:
        UsageError: the file exists. CapacityError: the disk has no room.
    """
    if path.exists() and not force:
        raise UsageError(
            "convert-target-exists", f"{path} exists already.", "Add --force to replace it."
        )
    found = identify(source, path)
    require_complete(found)

    def pieces(name: str) -> Iterator[memoryview]:
        for start, stop in stripes(source.spec[name]):
            values = source.elements(name, start, stop).contiguous()
            yield values.view(torch.uint8).numpy().data

    extra = {**source.metadata, **description_metadata(found), **(metadata or {})}
    write_checkpoint(path, source.spec, pieces, extra)
    return found
