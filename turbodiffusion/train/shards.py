"""Tar shards of teacher samples, in the published layout, read and written with the standard
library.

``shard_000012.tar`` holds for each sample ``KEY.latent.pt`` (C T H W), ``KEY.embed.pt`` (text
tokens × width) and ``KEY.prompt.txt``, where KEY is the number of its prompt; merged shards put
them under ``KEY/``. Only headers are read to index a shard. What is cut off or cannot be read is
skipped and counted.
"""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from turbodiffusion.errors import CapacityError, WeightsError

FIELDS = ("latent.pt", "embed.pt", "prompt.txt")
CACHED = 2_000_000_000
"""Bytes of samples below which they stay in memory unless told otherwise."""


@dataclass(frozen=True)
class Sample:
    """Where a sample lies: field → (offset, bytes) in ``shard``."""

    shard: Path
    key: str
    places: dict[str, tuple[int, int]]

    @property
    def end(self) -> int:
        """First byte behind the sample's last block."""
        return max(offset + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                   for offset, size in self.places.values())  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors and text."""
        return sum(self.places[name][1] for name in FIELDS)

    def load(self) -> tuple[Tensor, Tensor, str]:
        """Latents, text embedding, prompt.

        Raises:
            ValueError: a field is damaged or not finite.
        """
        with self.shard.open("rb") as file:
            raw = {}
            for name in FIELDS:
                offset, size = self.places[name]
                file.seek(offset)
                raw[name] = file.read(size)
        try:
            latent, embed = (
                torch.load(io.BytesIO(raw[name]), map_location="cpu", weights_only=True)
                for name in FIELDS[:2]
            )
            prompt = raw["prompt.txt"].decode("utf-8")
            sound = latent.dim() == 4 and embed.dim() == 2
            sound = sound and bool(latent.isfinite().all() and embed.isfinite().all())
        except Exception as error:  # torch.load raises kinds of many libraries
            raise ValueError(f"{self.shard.name}: sample {self.key} is damaged: {error}") from error
        if not sound:
            raise ValueError(f"{self.shard.name}: sample {self.key} is no finite latents and text")
        return latent, embed, prompt


@dataclass
class Index:
    """The complete samples of one shard; ``broken`` says why the rest could not be read, or
    nothing."""

    samples: list[Sample] = field(default_factory=list)
    incomplete: int = 0
    broken: str = ""


def index_shard(path: Path) -> Index:
    """Read the headers of a shard, as far as they are sound."""
    found, size = Index(), path.stat().st_size
    places: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                place = PurePosixPath(member.name)
                stem, _, name = place.name.partition(".")
                key = str(place.parent / stem)
                if member.offset_data + member.size > size:
                    found.broken = f"{path.name} is cut off in {member.name}"
                    break
                places.setdefault(key, {})[name.lower()] = member.offset_data, member.size
            else:  # tarfile takes any header that it cannot read for the end
                if _block(path, archive.offset).strip(b"\0"):
                    found.broken = f"{path.name} is damaged at byte {archive.offset}"
    except (tarfile.TarError, OSError) as error:
        found.broken = f"{path.name} is damaged: {error}"
    for key, one in places.items():
        if all(name in one for name in FIELDS):
            found.samples.append(Sample(path, key, one))
        else:
            found.incomplete += 1
    if not found.samples and not found.broken:
        found.broken = f"{path.name} holds no complete sample"
    return found


def _block(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE)


def shard_path(folder: Path, number: int) -> Path:
    """Where a complete shard lies."""
    return folder / f"shard_{number:06d}.tar"


class ShardWriter:
    """One shard, appended sample by sample to ``….tar.tmp`` and named when it is complete.

    A file that a kill has left is cut before the first sample that is damaged and continued, so
    that the finished shard has the same bytes as one written in one go. ``done`` holds the numbers
    of the samples that are kept.
    """

    def __init__(self, folder: Path, number: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = shard_path(folder, number)
        self.temporary = self.path.with_name(self.path.name + ".tmp")
        self.done: set[int] = set()
        if self.temporary.exists():
            end = 0
            for one in index_shard(self.temporary).samples:
                try:
                    one.load()  # a machine that lost power may have left zeros
                    self.done.add(int(one.key))
                except ValueError:
                    break
                end = one.end
            os.truncate(self.temporary, end)
            # Zeros end an archive: two blocks and what fills the record, as tarfile writes them.
            records = -(-(end + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE)
            os.truncate(self.temporary, records * tarfile.RECORDSIZE)

    def add(self, number: int, latent_CTHW: Tensor, embed_SD: Tensor, prompt: str) -> None:
        """Append one sample.

        Raises:
            CapacityError: the disk is full. The samples before it are kept.
        """
        key = f"{number:09d}"
        values = (saved_bytes(latent_CTHW), saved_bytes(embed_SD), prompt.encode("utf-8"))
        try:
            with tarfile.open(self.temporary, "a", format=tarfile.USTAR_FORMAT) as archive:
                for name, data in zip(FIELDS, values, strict=True):
                    info = tarfile.TarInfo(f"{key}.{name}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        except OSError as error:
            raise CapacityError(
                "shards-disk",
                f"Sample {key} could not be written to {self.temporary}: {error}.",
                "Free some space; the same command goes on behind the last complete sample.",
            ) from error
        self.done.add(number)

    def finish(self) -> Path:
        """Give the shard its name, once it is on the disk."""
        with self.temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.temporary, self.path)
        return self.path


def saved_bytes(value: Tensor) -> bytes:
    """A tensor as a shard holds it: in bf16, by ``torch.save``."""
    buffer = io.BytesIO()
    torch.save(value.detach().to("cpu", torch.bfloat16).contiguous().clone(), buffer)
    return buffer.getvalue()


class Shards:
    """The samples of all shards of a folder, by number, in a new order each epoch.

    Which sample has which number depends on the seed alone, so a run continues at any position and
    on any number of processes.

    Args:
        cache: keep every sample in memory once it was read; None: where all of them take less
            than :data:`CACHED`.

    Attributes:
        damaged: what of the shards cannot be read, a sentence each; incomplete: samples without
            all fields. bad: (shard, key) of the samples that turned out to be damaged.
    """

    def __init__(self, folder: Path, seed: int = 0, *, cache: bool | None = None) -> None:
        self.folder, self.seed, self.samples = folder, seed, list[Sample]()
        self.damaged, self.incomplete = list[str](), 0
        self.bad: set[tuple[str, str]] = set()
        self._order: tuple[int, list[int]] = -1, []
        for path in sorted(folder.rglob("*.tar")):
            index = index_shard(path)
            self.samples += index.samples
            self.damaged += [index.broken] if index.broken else []
            self.incomplete += index.incomplete
        if not self.samples:
            raise WeightsError(
                "shards-empty",
                f"{folder} holds no complete sample in shards (*.tar); "
                f"{len(self.damaged)} shards are damaged.",
                "Give the folder of the shards, or fetch them again.",
            )
        small = sum(one.nbytes for one in self.samples) < CACHED
        self.cache = small if cache is None else cache
        self._kept: dict[int, tuple[Tensor, Tensor, str]] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, position: int) -> tuple[Tensor, Tensor, str]:
        """Sample ``position`` of an endless sequence; a damaged one is replaced by the next.

        Raises:
            WeightsError: all are damaged.
        """
        for step in range(len(self)):
            number = self._at(position, step)
            if number in self._kept:
                return self._kept[number]
            sample = self.samples[number]
            try:
                values = sample.load()
            except ValueError:
                self.bad.add((sample.shard.relative_to(self.folder).as_posix(), sample.key))
                continue
            if self.cache:
                self._kept[number] = values
            return values
        raise WeightsError(
            "shards-damaged",
            f"None of {len(self)} samples can be read.",
            "Fetch the shards again, or make them again.",
        )

    def _at(self, position: int, step: int) -> int:
        epoch, place = divmod(position, len(self))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = epoch, torch.randperm(len(self), generator=generator).tolist()
        return self._order[1][(place + step) % len(self)]
