"""The Hugging Face hub: its cache is read by layout, its library is imported only to download.

Cache layout (public): ``hub/models--ORG--NAME/{blobs,refs,snapshots/COMMIT}``, with the commit of
the default branch in ``refs/main``; snapshots link into blobs, which are named by their etag.

The library tells what a file is (:func:`locate`, :func:`repository_files`), signs in, finds the
mirror of ``HF_ENDPOINT``, opens the stream (:func:`stream`) and links a finished blob into its
snapshot (:func:`link`). It does not resume after the process that downloaded is gone, nor compare
hashes; :mod:`.transfer` adds these two.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbodiffusion.errors import SetupError, WeightsError

# What a repository may be asked for; never scripts or pickles under other names.
WANTED = ["*.json", "*.safetensors", "*.pth", "*.model"]


@dataclass(frozen=True)
class Published:
    """What the hub says about a file now: its etag is the sha256 of a large file (LFS, Xet) and
    the git object id of a small one."""

    repository: str
    path: str
    url: str
    etag: str
    commit: str
    size: int

    @property
    def sha256(self) -> str:
        """``""`` where the hub does not tell it."""
        return self.etag if re.fullmatch(r"[0-9a-f]{64}", self.etag) else ""

    @property
    def git_id(self) -> str:
        """Object id of a small file, ``""`` for others."""
        return self.etag if re.fullmatch(r"[0-9a-f]{40}", self.etag) else ""


def offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` (or ``TRANSFORMERS_OFFLINE``) forbids the network."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(n, "").lower() in ("1", "true", "yes", "on") for n in names)


def cache_folder() -> Path:
    """Repository cache: ``HF_HUB_CACHE``, or ``hub`` under ``HF_HOME`` or the user's cache."""
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{base}/huggingface"
    return Path(home).expanduser() / "hub"


def repository_folder(repository: str, cache: Path | None = None) -> Path:
    """Where a repository lies in a cache (default: the user's)."""
    return (cache or cache_folder()) / f"models--{repository.replace('/', '--')}"


def cached_folder(repository: str, cache: Path | None = None) -> Path | None:
    """Snapshot folder of a repository in the cache, the default branch first."""
    folder = repository_folder(repository, cache)
    main = folder / "refs" / "main"
    if main.is_file():
        snapshot = folder / "snapshots" / main.read_text("utf-8").strip()
        if snapshot.is_dir():
            return snapshot
    snapshots = sorted((folder / "snapshots").glob("*"), key=lambda p: p.stat().st_mtime)
    return snapshots[-1] if snapshots else None


def cached_file(repository: str, path: str, cache: Path | None = None) -> Path | None:
    """A file of a repository if the cache has it."""
    folder = cached_folder(repository, cache)
    return folder / path if folder and (folder / path).is_file() else None


def locate(repository: str, path: str) -> Published:
    """Ask the hub for a file's etag, commit and size, patiently.

    Raises:
        WeightsError: offline, no such file, or no answer.
    """
    library = _library(repository)
    endpoint = os.environ.get("HF_ENDPOINT") or None
    with _explained(repository, path):
        url = library.hf_hub_url(repository, path, endpoint=endpoint)
        found = library.get_hf_file_metadata(url, endpoint=endpoint, retry_on_errors=True)
        if not found.etag or not found.commit_hash or found.size is None:
            raise ValueError("the server names no etag, commit or size")
        return Published(repository, path, url, found.etag, found.commit_hash, found.size)


def repository_files(repository: str) -> list[tuple[str, int, str]]:
    """(path, bytes, sha256 or "") of a repository's weights and configuration.

    Raises:
        WeightsError: offline, no such repository, or no answer.
    """
    library = _library(repository)
    with _explained(repository, ""):
        api = library.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        entries = [e for e in api.list_repo_tree(repository, recursive=True) if hasattr(e, "size")]
        kept = [e for e in entries if any(fnmatch.fnmatch(e.path, p) for p in WANTED)]
        return [(e.path, e.size, e.lfs.sha256 if e.lfs else "") for e in kept]


@contextlib.contextmanager
def stream(found: Published, offset: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Open a file from byte ``offset`` on: where the answer really starts, and its pieces.

    The address is that of the hub, not the signed one it leads to, which expires during a long
    download; credentials do not follow to another host.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream(
        "GET", found.url, headers=headers, timeout=timeout, follow_redirects=True
    ) as response:
        hf_raise_for_status(response)
        start = offset if response.status_code == 206 else 0
        yield start, response.iter_bytes()  # as they arrive: nothing waits in memory


def can_link() -> bool:
    """Whether snapshots of the cache are links; on plain Windows they are the files themselves."""
    from huggingface_hub.file_download import are_symlinks_supported

    return bool(are_symlinks_supported(cache_folder()))


def link(found: Published) -> Path:
    """Name a finished blob in its snapshot and note the commit; returns its place there."""
    library = _library(found.repository)
    with _explained(found.repository, found.path):
        return Path(
            library.hf_hub_download(
                repo_id=found.repository,
                filename=found.path,
                cache_dir=cache_folder(),
                endpoint=os.environ.get("HF_ENDPOINT") or None,
            )
        )


def file_lock(path: Path) -> AbstractContextManager[Any]:
    """The library's lock on a file, which also works where the file system has no locks."""
    _imported()
    from huggingface_hub.utils import WeakFileLock

    return WeakFileLock(path)


def require_online(what: str) -> None:
    """Refuse the network where the environment does.

    Raises:
        WeightsError: HF_HUB_OFFLINE is set.
    """
    if offline():
        raise WeightsError(
            "weights-offline",
            f"{what} is not in {cache_folder()} and HF_HUB_OFFLINE forbids the hub.",
            "Unset HF_HUB_OFFLINE, or give a folder that has it: --from DIR.",
        )


def _library(repository: str) -> Any:
    require_online(repository)
    return _imported()


def _imported() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise SetupError(
            "hub-library-missing",
            "Downloading needs the package huggingface_hub, which is not installed.",
            "Run `pip install huggingface_hub`.",
        ) from error
    # Its warnings about retries would tear the progress bar; we say ourselves what happens.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return huggingface_hub


@contextlib.contextmanager
def _explained(repository: str, path: str) -> Iterator[None]:
    """Turn the library's many failures (connection, 401, 404) into one error with a fix."""
    try:
        yield
    except Exception as error:  # the library's kinds share no other base
        raise download_error(repository, path, error) from error


def download_error(repository: str, path: str, error: BaseException) -> WeightsError:
    """The error to show when a file, or with ``path`` empty a repository, cannot be fetched."""
    reason = str(error).strip().split("\n", 1)[0]
    return WeightsError(
        "weights-download",
        f"{path or 'The files'} of {repository} could not be fetched: "
        f"{type(error).__name__}: {reason}",
        "Check the name and the connection, then run it again: it goes on where it stopped. "
        "HF_ENDPOINT chooses a mirror, HF_TOKEN signs in.",
    )
