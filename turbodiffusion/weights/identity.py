"""Which weights made this video: a quick fingerprint, and the full sha256 computed once.

The quick one covers the file's table of contents and its size: instant on 28 GB. For a ``.pth`` the
zip directory carries a checksum of every tensor, so it also changes with the values; for
safetensors it covers names, shapes and metadata. The full hash is remembered by path, size and
time of change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from turbodiffusion.weights.header import read_header

CHUNK = 16 * 1024 * 1024


def quick_hash(path: str | Path) -> str:
    """sha256 over the header bytes and size of every file of a checkpoint, as 64 hex digits."""
    digest = hashlib.sha256()
    for file in read_header(path).files:
        digest.update(struct.pack("<Q", file.stat().st_size))
        digest.update(_header_bytes(file))
    return digest.hexdigest()


def _header_bytes(file: Path) -> bytes:
    with file.open("rb") as stream:
        start = stream.read(8)
        if start[:2] != b"PK":
            return start + stream.read(struct.unpack("<Q", start)[0])
        import zipfile

        with zipfile.ZipFile(stream) as archive:
            stream.seek(archive.start_dir)
            directory = stream.read()
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            return directory + archive.read(name)


def full_hash(path: str | Path, on_progress: Callable[[int, int], None] | None = None) -> str:
    """sha256 of one whole file, from the cache where the file has not changed.

    Args:
        on_progress: called with (bytes done, bytes in all) while a hash is being computed.
    """
    file = Path(path).resolve()
    known = _read_cache(cache_folder() / "sha256.json")
    return known.get(_key(file)) or compute_hash(file, on_progress)


def compute_hash(path: str | Path, on_progress: Callable[[int, int], None] | None = None) -> str:
    """:func:`full_hash` of the bytes as they are now, whatever was remembered."""
    file = Path(path).resolve()
    size, digest, done = file.stat().st_size, hashlib.sha256(), 0
    with file.open("rb") as stream:
        while piece := stream.read(CHUNK):
            digest.update(piece)
            done += len(piece)
            if on_progress:
                on_progress(done, size)
    remember(file, digest.hexdigest())
    return digest.hexdigest()


def remember(path: str | Path, digest: str) -> None:
    """Spare :func:`full_hash` the work for a file whose sha256 is known."""
    file = Path(path).resolve()
    cache = cache_folder() / "sha256.json"
    known = {k: v for k, v in _read_cache(cache).items() if not k.startswith(f"{file}|")}
    known[_key(file)] = digest
    _write_cache(cache, known)


def _key(file: Path) -> str:
    stat = file.stat()
    return f"{file}|{stat.st_size}|{stat.st_mtime_ns}"


def cache_folder() -> Path:
    """The folder of small computed facts: ``TURBODIFFUSION_CACHE`` or the system's cache."""
    if chosen := os.environ.get("TURBODIFFUSION_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "turbodiffusion"


def _read_cache(path: Path) -> dict[str, str]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # a lost cache only costs time
    return value if isinstance(value, dict) else {}


def _write_cache(path: Path, known: dict[str, str]) -> None:
    with contextlib.suppress(OSError):  # a read-only home must not stop a run
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        temporary.write_text(json.dumps(known, indent=1), "utf-8")
        os.replace(temporary, path)
