"""Are the files of this machine what was published? Hashes known, hashes recorded, verdicts.

The base files' sha256 are public (:mod:`.catalogue`). For the others the hash that the hub stated
when they were fetched is recorded, and the cache names its blobs by it. Where nothing is known the
contents decide: the names, shapes and types of the tensors must be those of the released format,
and the sha256 is recorded, so that a later change shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from turbodiffusion.errors import TurboDiffusionError
from turbodiffusion.weights.catalogue import RemoteFile
from turbodiffusion.weights.identity import cache_folder, compute_hash

_LOCK = threading.Lock()


@dataclass(frozen=True)
class Verdict:
    """``state`` is ``verified`` (the hash is the published or recorded one), ``recorded`` (nothing
    to compare with; the contents fit) or ``damaged``."""

    path: Path
    state: str
    sha256: str
    reason: str


def check(
    remote: RemoteFile, path: Path, on_progress: Callable[[int, int], None] | None = None
) -> Verdict:
    """Read a file and compare it with what is known about it."""
    size, wanted = path.stat().st_size, known_hash(remote, path)
    if remote.sha256 and size != remote.bytes and _same_format(remote, path):
        return Verdict(path, "damaged", "", f"{size} bytes, and {remote.bytes} are published")
    found = compute_hash(path, on_progress)
    if not _same_format(remote, path):
        wanted = ""  # a converted file has other bytes
    if wanted and found != wanted:
        return Verdict(path, "damaged", found, f"sha256 {found}, and {wanted} is known")
    if wanted:
        return Verdict(path, "verified", found, "as published" if remote.sha256 else "as recorded")
    problem = _problem(path)
    if problem:
        return Verdict(path, "damaged", found, problem)
    if _same_format(remote, path):
        record(remote, found)
    return Verdict(path, "recorded", found, "no hash is published; the contents fit")


def known_hash(remote: RemoteFile, path: Path | None = None) -> str:
    """sha256 of a published file: from the catalogue, the record, or the name of the blob at
    ``path``; ``""`` if nobody knows it."""
    if remote.sha256:
        return remote.sha256
    if path is not None and re.fullmatch(r"[0-9a-f]{64}", path.resolve().name):
        return path.resolve().name
    return _read().get(f"{remote.repository}/{remote.path}", "")


def record(remote: RemoteFile, digest: str) -> None:
    """Remember the sha256 of a file whose hash is not in the catalogue."""
    if remote.sha256:
        return
    with _LOCK, contextlib.suppress(OSError):  # a read-only home must not stop a download
        known = _read() | {f"{remote.repository}/{remote.path}": digest}
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        temporary.write_text(json.dumps(known, indent=1, sort_keys=True), "utf-8")
        os.replace(temporary, path)


def _same_format(remote: RemoteFile, path: Path) -> bool:
    """Whether ``path`` claims to be the published file and not a conversion of it."""
    return Path(remote.path).suffix == path.suffix


def _problem(path: Path) -> str:
    """What is wrong with the contents of a checkpoint, ``""`` if nothing is."""
    from turbodiffusion.weights.detect import describe
    from turbodiffusion.weights.header import read_header

    if path.suffix not in (".pth", ".pt", ".safetensors"):
        return ""
    try:
        found = describe(read_header(path))
    except TurboDiffusionError as error:
        return error.message
    wrong = {"missing": found.missing, "of another shape": found.mismatched}
    lacking = [f"{len(names)} tensors {what}" for what, names in wrong.items() if names]
    return found.unsupported or ", ".join(lacking)


def _path() -> Path:
    return cache_folder() / "published.json"


def _read() -> dict[str, str]:
    try:
        value = json.loads(_path().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
