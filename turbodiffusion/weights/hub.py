"""The Hugging Face hub: its cache is read by layout, its library is imported only to download.

Cache layout (public): ``hub/models--ORG--NAME/{refs,snapshots/COMMIT}``, with the commit of the
default branch in ``refs/main``.
"""

from __future__ import annotations

import os
from pathlib import Path

from turbodiffusion.errors import SetupError, WeightsError

# What a repository may be asked for; never scripts or pickles under other names.
WANTED = ["*.json", "*.safetensors", "*.pth", "*.model"]


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


def cached_folder(repository: str) -> Path | None:
    """Snapshot folder of a repository in the cache, the default branch first."""
    folder = cache_folder() / f"models--{repository.replace('/', '--')}"
    main = folder / "refs" / "main"
    if main.is_file():
        snapshot = folder / "snapshots" / main.read_text("utf-8").strip()
        if snapshot.is_dir():
            return snapshot
    snapshots = sorted((folder / "snapshots").glob("*"), key=lambda p: p.stat().st_mtime)
    return snapshots[-1] if snapshots else None


def cached_file(repository: str, path: str) -> Path | None:
    """A file of a repository if the cache has it."""
    folder = cached_folder(repository)
    return folder / path if folder and (folder / path).is_file() else None


def fetch_file(repository: str, path: str) -> Path:
    """Download one file into the cache and return its place there."""
    from_hub = _library(repository).hf_hub_download
    return Path(_call(repository, from_hub, repo_id=repository, filename=path))


def fetch_folder(repository: str) -> Path:
    """Download a repository's weights and configuration and return the snapshot folder."""
    from_hub = _library(repository).snapshot_download
    return Path(_call(repository, from_hub, repo_id=repository, allow_patterns=WANTED))


def _library(repository: str):  # type: ignore[no-untyped-def]
    if offline():
        raise WeightsError(
            "weights-offline",
            f"{repository} is not in {cache_folder()} and HF_HUB_OFFLINE forbids the hub.",
            "Unset HF_HUB_OFFLINE, or copy the repository into the cache.",
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise SetupError(
            "hub-library-missing",
            "Downloading needs the package huggingface_hub, which is not installed.",
            "Run `pip install huggingface_hub`.",
        ) from error
    return huggingface_hub


def _call(repository: str, function, **arguments) -> str:  # type: ignore[no-untyped-def]
    try:
        return str(function(**arguments))
    # The library raises many kinds (connection, 401, 404, disk); all of them end the search here.
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise WeightsError(
            "weights-download",
            f"{arguments.get('filename', 'The files')} of {repository} could not be fetched: "
            f"{type(error).__name__}: {reason}",
            "Check the name and the connection; HF_ENDPOINT chooses a mirror, HF_TOKEN signs in.",
        ) from error
