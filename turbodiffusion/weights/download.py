"""Which files a model still needs, and fetching them, several at a time.

Without a folder they go into the Hugging Face cache, where :mod:`.find` looks, so what was fetched
is found by name afterwards; with one they get their released names there. A file that lies
elsewhere on this machine is copied, not fetched. Every file is compared with its published sha256,
or with the hash that the hub states; the sha256 of the others is recorded (:mod:`.verify`).
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from turbodiffusion.errors import CapacityError, Stopped, WeightsError
from turbodiffusion.models.cards import ModelCard
from turbodiffusion.weights import hub, places, verify
from turbodiffusion.weights.catalogue import BASE_FILES, RemoteFile, dit_files
from turbodiffusion.weights.identity import cache_folder
from turbodiffusion.weights.transfer import Watch, transfer, wrong_hash

RESERVE = 2**30
"""Bytes of the disk that a download leaves free."""

AT_ONCE = 4
"""Files fetched at the same time."""


@dataclass(frozen=True)
class Item:
    """One file of a model.

    Attributes:
        role: what it is for. remote: where it is published.
        here: where it lies, if it is where it should be.
        source: a copy elsewhere on this machine.
    """

    role: str
    remote: RemoteFile
    here: Path | None = None
    source: Path | None = None


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


def repository_items(repository: str) -> list[Item]:
    """Weights and configuration of somebody else's repository.

    Raises:
        WeightsError: offline, or the hub does not know it.
    """
    files = [RemoteFile(repository, *entry) for entry in hub.repository_files(repository)]
    return [Item("", f, hub.cached_file(repository, f.path)) for f in files]


def into(items: Sequence[Item], folder: Path | None, origin: Path | None) -> list[Item]:
    """The same items for a target ``folder`` and with the copies that ``origin`` has.

    Args:
        folder: where the files shall lie; None: anywhere that :mod:`.find` looks.
        origin: a folder, or a Hugging Face cache, that is asked before the hub.
    """
    out = []
    for item in items:
        if folder is not None:
            there = folder / item.remote.path
            elsewhere = item.here if item.here != there else None
            item = replace(item, here=there if there.is_file() else None, source=elsewhere)
        if item.here is None and origin is not None:
            item = replace(item, source=_in(origin, item.remote) or item.source)
        out.append(item)
    return out


def _in(origin: Path, remote: RemoteFile) -> Path | None:
    model = remote.repository.rpartition("/")[2]
    names = (remote.path, remote.name, f"{model}/{remote.path}", f"{model}/{remote.name}")
    found = next((origin / name for name in names if (origin / name).is_file()), None)
    return found or hub.cached_file(remote.repository, remote.path, origin)


def target(item: Item, folder: Path | None) -> Path:
    """The folder or cache that a missing item goes into: copies never go into the cache."""
    return folder or (places.search_folders()[0] if item.source else hub.cache_folder())


def require_space(items: Sequence[Item], folder: Path | None = None) -> None:
    """Refuse a download that the disk cannot hold; what is there of a file counts.

    Raises:
        CapacityError: with what is needed and what is free.
    """
    missing = [item for item in items if item.here is None]
    for place in dict.fromkeys(target(item, folder) for item in missing):
        existing = next(p for p in (place, *place.absolute().parents) if p.exists())
        wanted = sum(i.remote.bytes - _kept(i, folder) for i in missing
                     if target(i, folder) == place)  # fmt: skip
        free = shutil.disk_usage(existing).free
        if wanted > 0 and wanted + RESERVE > free:
            raise CapacityError(
                "disk-full",
                f"{gigabytes(wanted)} are to be fetched into {place}, where {gigabytes(free)} are "
                "free.",
                "Make room, or choose a folder on another disk with --dir or HF_HOME.",
            )


def _kept(item: Item, folder: Path | None) -> int:
    """Bytes of an interrupted download, where its place can be told without the hub."""
    if folder is not None or item.source:
        return _size(_partial(target(item, folder) / item.remote.path))
    blobs = hub.repository_folder(item.remote.repository) / "blobs"
    return _size(blobs / f"{item.remote.sha256}.incomplete")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}.incomplete")


def fetch(item: Item, folder: Path | None, watch: Watch) -> Path:
    """Bring one file to its place and compare it; goes on where an earlier call stopped.

    Raises:
        WeightsError: it could not be fetched, or other bytes than the published ones came.
        CapacityError: the disk is full.
    """
    remote = item.remote
    if item.source is not None:
        return _copy(item.source, target(item, folder) / remote.path, remote, watch)
    found = hub.locate(remote.repository, remote.path)
    if remote.sha256 and found.sha256 not in ("", remote.sha256):
        raise wrong_hash(Path(remote.path), found.sha256, remote.sha256)
    blob = hub.repository_folder(remote.repository) / "blobs" / found.etag
    partial = blob.with_name(f"{found.etag}.incomplete")
    final = blob
    if folder is not None:
        final = folder / remote.path
        partial = _partial(final)
    elif not hub.can_link():
        snapshots = hub.repository_folder(remote.repository) / "snapshots"
        final = snapshots / found.commit / remote.path
    with _alone(partial):
        if not final.is_file():
            digest = transfer(
                final, partial, found.size, lambda offset: hub.stream(found, offset), watch,
                sha256=remote.sha256 or found.sha256, git_id=found.git_id,
                explain=lambda e: hub.download_error(remote.repository, remote.path, e),
            )  # fmt: skip
            verify.record(remote, digest)
    return final if folder is not None else hub.link(found)


def _copy(source: Path, final: Path, remote: RemoteFile, watch: Watch) -> Path:
    """A file that is on this machine already, through the same checks."""

    @contextlib.contextmanager
    def pieces(offset: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        with source.open("rb") as file:
            file.seek(offset)
            yield offset, iter(lambda: file.read(2**20), b"")

    wanted = verify.known_hash(remote, source)
    with _alone(_partial(final)):
        digest = transfer(
            final, _partial(final), source.stat().st_size, pieces, watch, sha256=wanted,
            explain=lambda e: WeightsError(
                "weights-copy", f"{source} could not be copied: {e}.", "Check the disk it is on."
            ),
        )  # fmt: skip
        verify.record(remote, digest)
    return final


@contextlib.contextmanager
def _alone(partial: Path) -> Iterator[None]:
    """One process at a time appends to a partial file; the second waits, then finds it done."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(partial.resolve()).encode()).hexdigest()[:32]
    lock = cache_folder() / "locks" / f"{name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with hub.file_lock(lock):
        yield


class Quiet:
    """Watches nothing."""

    def moved(self, count: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def fetch_file(repository: str, path: str) -> Path:
    """One file into the cache; its place there."""
    known = next((f for f in BASE_FILES.values() if (f.repository, f.path) == (repository, path)),
                 RemoteFile(repository, path, 0))  # fmt: skip
    return fetch(Item("", known), None, Quiet())


def fetch_folder(repository: str) -> Path:
    """Weights and configuration of a repository into the cache; the snapshot folder."""
    items = repository_items(repository)
    require_space(items)
    fetch_all(items, None, lambda item: Quiet())
    folder = hub.cached_folder(repository)
    if folder is None:
        raise WeightsError("weights-missing", f"{repository} holds no weights.", "Check the name.")
    return folder


def fetch_all(
    items: Sequence[Item], folder: Path | None, watch: Callable[[Item], Watch]
) -> list[Path]:
    """Fetch what is missing, ``AT_ONCE`` files at a time; their places in the order of ``items``.

    Ctrl-C and the first error stop the others, which keep what they have. The largest file starts
    first, as it takes longest.

    Raises:
        As :func:`fetch`; the first error that occurred.
    """
    if any(item.here is None and item.source is None for item in items):
        hub.require_online("What is missing")
    done: dict[int, Path] = {i: item.here for i, item in enumerate(items) if item.here}
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    missing = [i for i in range(len(items)) if i not in done]
    for i in sorted(missing, key=lambda i: -items[i].remote.bytes):
        todo.put(i)
    failed: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                i = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done[i] = fetch(items[i], folder, _Stopping(watch(items[i]), stop))
            except BaseException as error:
                failed.append(error)
                stop.set()

    # Daemons: a read that hangs must not keep an interrupted command alive.
    threads = [
        threading.Thread(target=work, daemon=True) for _ in range(min(AT_ONCE, len(missing)))
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
                if stop.is_set():
                    thread.join(2.0)
                    break
    except KeyboardInterrupt:
        stop.set()
        raise
    if failed:
        raise next((e for e in failed if not isinstance(e, Stopped)), failed[0])
    return [done[i] for i in range(len(items))]


class _Stopping:
    """A watch that ends its transfer when another one failed."""

    def __init__(self, inner: Watch, stop: threading.Event) -> None:
        self._inner, self._stop = inner, stop

    def moved(self, count: int) -> None:
        if self._stop.is_set():
            raise Stopped("The download was stopped; what came is kept.")
        self._inner.moved(count)

    def note(self, text: str) -> None:
        self._inner.note(text)


def gigabytes(count: int) -> str:
    """``2.84 GB``, or MB for small files."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
