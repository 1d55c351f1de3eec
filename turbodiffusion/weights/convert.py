"""Convert a checkpoint of any dialect to safetensors or back to the released ``.pth`` layout.

Dialects differ in names and one flattened axis, never in bytes, so a conversion copies byte ranges
from file to file: exact, in constant memory, without torch and without unpickling. The description
of the model goes into the safetensors metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from turbodiffusion import __version__
from turbodiffusion.errors import UsageError
from turbodiffusion.weights.check import require_complete, require_kind
from turbodiffusion.weights.detect import Description, describe, released_shapes
from turbodiffusion.weights.header import Header, TensorInfo, read_header
from turbodiffusion.weights.layouts import resolve
from turbodiffusion.weights.spec import TensorSpec
from turbodiffusion.weights.write import write_checkpoint

CHUNK = 8 * 1024 * 1024


def convert(
    source: str | Path, target: str | Path, metadata: Mapping[str, str] | None = None
) -> Description:
    """Copy a checkpoint to ``target`` under released names; its extension chooses the format.

    Args:
        source: anything :func:`.header.read_header` accepts.
        target: ``*.safetensors``, or ``*.pth`` for a flat mapping as torch.save writes it.
        metadata: further entries, over those of the source and the description.

    Returns:
        The description of the source.

    Raises:
        WeightsError: the source is damaged, incomplete, or no network this package knows.
        CapacityError: the disk has no room for the target.
    """
    source, target = Path(source), Path(target)
    header = read_header(source)
    found = describe(header)
    kind = found.kind if found.kind in ("vae", "text_encoder") else "dit"
    require_kind(found, kind)
    require_complete(found)
    if any(target.resolve() == file.resolve() for file in header.files):
        raise UsageError(
            "convert-same-file", f"{target} is the source itself.", "Choose another name."
        )
    layout = resolve(header.shapes, header.wrapper)
    shapes = released_shapes(header, layout)
    spec = {
        name: TensorSpec(shapes[name], header.tensors[key].dtype)
        for name, key in layout.names.items()
    }
    extra = {**header.metadata, **description_metadata(found), **(metadata or {})}
    write_checkpoint(target, spec, lambda name: _bytes(header, layout.names[name]), extra)
    return found


def description_metadata(found: Description) -> dict[str, str]:
    """What a converted file says about itself; :mod:`.detect` believes ``card`` and ``expert``."""
    entries = {
        "format": "pt",  # expected by other readers of safetensors
        "kind": found.kind,
        "card": found.card,
        "layout": found.layout,
        "attention": found.attention,
        "expert": found.expert if found.expert != "unknown" else "",
        "source": found.metadata.get("source") or found.path.name,
        "turbodiffusion": __version__,
    }
    return {name: value for name, value in entries.items() if value}


def _bytes(header: Header, key: str) -> Iterator[bytes | memoryview]:
    info = header.tensors[key]
    if info.stride is not None:
        yield from _gathered(header, key)
        return
    yield from read_range(info)


def read_range(info: TensorInfo) -> Iterator[bytes]:
    """The bytes of a contiguous tensor in pieces of :data:`CHUNK`."""
    with info.file.open("rb") as file:
        file.seek(info.offset)
        left = info.nbytes
        while left:
            piece = file.read(min(CHUNK, left))
            if not piece:
                raise OSError(f"{info.file} became shorter while it was read")
            left -= len(piece)
            yield piece


def _gathered(header: Header, key: str) -> Iterator[memoryview]:
    """A transposed or strided tensor has to be put in order, which takes torch."""
    import torch

    from turbodiffusion.weights.read import Checkpoint

    tensor = Checkpoint(header).tensor(key).contiguous().flatten().view(torch.uint8)
    yield tensor.numpy().data
