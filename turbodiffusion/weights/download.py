"""Which files a model still needs, and fetching them into the Hugging Face cache.

The cache is where :mod:`.find` looks, so what was fetched is found by name afterwards. The hub's
library resumes interrupted files; what has a published sha256 is compared with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from turbodiffusion.errors import CapacityError, WeightsError
from turbodiffusion.models.cards import ModelCard
from turbodiffusion.weights import hub, places
from turbodiffusion.weights.catalogue import BASE_FILES, RemoteFile, dit_files
from turbodiffusion.weights.identity import full_hash

RESERVE = 2**30
"""Bytes of the disk that a download leaves free."""


@dataclass(frozen=True)
class Item:
    """One file of a model: what it is for, where it is published, where it lies (or None)."""

    role: str
    remote: RemoteFile
    here: Path | None


def needed(card: ModelCard, quantised: bool) -> list[Item]:
    """The files of a released model in one layout, with VAE, text encoder and tokenizer."""
    present = places.released_dit(card, quantised)
    items = [
        Item(f"network {expert}".strip(), remote, present.get(expert))
        for expert, remote in dit_files(card, quantised).items()
    ]
    folders = places.search_folders()
    for role, remote in BASE_FILES.items():
        items.append(Item(role.replace("_", " "), remote, places.companion(card, role, folders)))
    return items


def require_space(items: list[Item]) -> None:
    """Refuse a download that the disk of the cache cannot hold.

    Raises:
        CapacityError: with what is needed and what is free.
    """
    folder = hub.cache_folder()
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    wanted = sum(item.remote.bytes for item in items if item.here is None)
    free = shutil.disk_usage(existing).free
    if wanted and wanted + RESERVE > free:
        raise CapacityError(
            "disk-full",
            f"{gigabytes(wanted)} are to be fetched into {folder}, where {gigabytes(free)} are "
            "free.",
            "Make room, or name a folder on another disk in HF_HOME.",
        )


def fetch(item: Item) -> Path:
    """Download one file, or go on with it, and compare its published sha256.

    Raises:
        WeightsError: it could not be fetched, or arrived damaged.
    """
    path = hub.fetch_file(item.remote.repository, item.remote.path)
    wanted = item.remote.sha256
    if wanted and (got := full_hash(path)) != wanted:
        raise WeightsError(
            "weights-hash",
            f"{path} has sha256 {got}, and {wanted} is published.",
            "Delete the file and fetch it again.",
        )
    return path


def fetch_all(items: list[Item], note: Callable[[str], None]) -> list[Path]:
    """Fetch what is missing; ``note`` is told each file before it is fetched."""
    require_space(items)
    paths = []
    for item in items:
        if item.here is None:
            note(f"fetching {item.remote.name} ({gigabytes(item.remote.bytes)})")
            paths.append(fetch(item))
        else:
            paths.append(item.here)
    return paths


def gigabytes(count: int) -> str:
    """``2.84 GB``, or MB for small files."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
