"""Which weight files a pipeline was made of, for the settings stored with every video.

Names and header hashes cost nothing. The sha256 of whole files does: small ones are read at once,
large ones by a thread that starts at load and is waited for when the settings are first needed. The
results are remembered, so this happens once for each file.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turbodiffusion.weights.find import Files
from turbodiffusion.weights.header import read_header
from turbodiffusion.weights.identity import full_hash, quick_hash

SMALL = 64 * 2**20
"""Bytes in all up to which files are hashed at once."""


class WeightIdentity:
    """File names and hashes of every part of a model.

    Args:
        parts: part → checkpoint file or folder, or tokenizer file.
    """

    def __init__(self, parts: Mapping[str, Path]) -> None:
        self._facts: dict[str, dict[str, str]] = {}
        self._files: dict[str, list[Path]] = {}
        for part, path in parts.items():
            self._facts[part] = {"file": path.name}
            if part == "tokenizer":
                self._files[part] = [path]
            else:
                self._facts[part]["hash"] = quick_hash(path)
                self._files[part] = list(read_header(path).files)
        self._thread = threading.Thread(target=self._hash, name="weight-hashes", daemon=True)
        sizes = [f.stat().st_size for files in self._files.values() for f in files]
        self._thread.start()
        if sum(sizes) <= SMALL:
            self._thread.join()

    @classmethod
    def of(cls, files: Files) -> WeightIdentity:
        """Of the files of a model; the parts are ``dit`` (or one for each expert), ``vae``, …"""
        experts = {f"dit_{name}" if name else "dit": path for name, path in files.dit.items()}
        return cls({**experts, "vae": files.vae, "text_encoder": files.text_encoder,
                    "tokenizer": files.tokenizer})  # fmt: skip

    def ready(self) -> bool:
        """Whether :meth:`as_dict` answers at once."""
        return not self._thread.is_alive()

    def as_dict(self) -> dict[str, dict[str, str]]:
        """Part → ``file``, ``hash`` (of the header) and ``sha256``; waits for the hashes."""
        self._thread.join()
        return {part: dict(facts) for part, facts in self._facts.items()}

    def _hash(self) -> None:
        for part, files in self._files.items():
            try:
                self._facts[part]["sha256"] = _sha256(files)
            except OSError as error:  # a file that went away: the video is still worth keeping
                warnings.warn(f"The sha256 of the {part} is unknown: {error}.", stacklevel=2)


def _sha256(files: list[Path]) -> str:
    """Of the file; of several, the sha256 over lines of hash and name, as sha256sum prints them."""
    if len(files) == 1:
        return full_hash(files[0])
    lines = "".join(f"{full_hash(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def differing_parts(stored: Any, here: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Parts whose weights are not those of ``stored``, the ``weights`` of a video's settings."""
    if not isinstance(stored, dict):
        return []
    return [
        part
        for part, facts in here.items()
        if isinstance(stored.get(part), dict)
        and any(stored[part].get(k, v) != v for k, v in facts.items() if k != "file")
    ]
