"""Read tensors of a checkpoint through memory mapping: only what is asked for enters memory.

``.safetensors`` goes through ``safetensors.safe_open``, ``.pth`` through
``torch.load(weights_only=True, mmap=True)``; nothing else ever reads tensors. The header has been
checked before (:mod:`.header`), so a broken file fails with a clear error and nothing loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, KeysView
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from turbodiffusion.errors import WeightsError
from turbodiffusion.weights.check import some
from turbodiffusion.weights.header import Header, read_header


class Checkpoint:
    """A checkpoint opened for reading. Tensors are views of the mapped file, on the CPU.

    They stay valid while they are referenced, also after :meth:`close`; writing to one copies the
    page and never changes the file.
    """

    def __init__(self, header: Header) -> None:
        self.header = header
        self.metadata = header.metadata
        self._open: dict[Path, Any] = {}

    def keys(self) -> KeysView[str]:
        return self.header.tensors.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __len__(self) -> int:
        return len(self.header.tensors)

    def __contains__(self, key: object) -> bool:
        return key in self.header.tensors

    def shape(self, key: str) -> tuple[int, ...]:
        return self.header.tensors[key].shape

    def dtype(self, key: str) -> torch.dtype:
        """Element type of a tensor, without reading it."""
        return getattr(torch, self.header.tensors[key].dtype)

    def tensor(self, key: str) -> torch.Tensor:
        """One tensor, memory-mapped, in the file's own type."""
        file = self.header.tensors[key].file
        if file not in self._open:
            self._open[file] = self._load(file)
        source = self._open[file]
        tensor = source[key] if isinstance(source, dict) else source.get_tensor(key)
        return tensor.detach()

    def close(self) -> None:
        """Let go of the files; tensors already handed out keep their mapping."""
        self._open.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _load(self, file: Path) -> Any:
        with file.open("rb") as start:
            zipped = start.read(2) == b"PK"
        try:
            if not zipped:
                from safetensors import safe_open

                return safe_open(str(file), framework="pt", device="cpu")
            table = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        # The header was sound, so this is rare; both libraries raise kinds of their own.
        except Exception as error:
            raise WeightsError(
                "weights-unreadable",
                f"{file} could not be opened: {type(error).__name__}: {error}",
                "Fetch the file again, or rewrite it with `turbodiffusion convert`.",
            ) from error
        return table[self.header.wrapper] if self.header.wrapper else table


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a ``.safetensors`` or ``.pth`` file, a sharded folder or a folder of a diffusers model.

    Raises:
        WeightsError: everything :func:`.header.read_header` refuses, and a pickle that asks for
            Python objects other than tensors.
    """
    header = read_header(path)
    if header.foreign:
        raise WeightsError(
            "weights-unsafe-pickle",
            f"{header.path} asks for Python objects besides tensors: {some(header.foreign)}.",
            "It was not loaded. `turbodiffusion convert FILE OUT.safetensors` copies the tensors "
            "alone, without running anything.",
        )
    return Checkpoint(header)
