"""Fingerprints change with what they cover; the full hash is computed once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from turbodiffusion.weights import identity
from turbodiffusion.weights.identity import full_hash, quick_hash


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBODIFFUSION_CACHE", str(tmp_path / "cache"))


def test_quick_hash_covers_header_and_size(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(4)}, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    expected = hashlib.sha256(len(raw).to_bytes(8, "little") + raw[: 8 + length]).hexdigest()
    assert quick_hash(path) == expected
    save_file({"a": torch.ones(4)}, path, metadata={"card": "x"})
    assert quick_hash(path) != expected


def test_quick_hash_of_pth_follows_the_values(tmp_path: Path) -> None:
    hashes = set()
    for value in (1.0, 2.0, 1.0):
        torch.save({"a": torch.full((1000,), value)}, tmp_path / "m.pth")
        hashes.add(quick_hash(tmp_path / "m.pth"))
    assert len(hashes) == 2


def test_quick_hash_of_shards(tmp_path: Path) -> None:
    from tests.weights.test_header import shards

    index = shards(tmp_path)
    assert quick_hash(tmp_path) == quick_hash(index)
    before = quick_hash(index)
    save_file({"b": torch.ones(4)}, tmp_path / "m-00002-of-00002.safetensors")
    assert quick_hash(index) != before


def test_full_hash_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(b"abc")
    seen: list[tuple[int, int]] = []
    expected = hashlib.sha256(b"abc").hexdigest()
    assert full_hash(path, lambda done, total: seen.append((done, total))) == expected
    assert full_hash(path, lambda done, total: seen.append((done, total))) == expected
    assert seen == [(3, 3)]
    path.write_bytes(b"abd")
    os.utime(path, ns=(1, 1))  # same size, another time
    assert full_hash(path) == hashlib.sha256(b"abd").hexdigest()


def test_damaged_or_unwritable_cache_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(b"abc")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "sha256.json").write_text("{broken")
    assert full_hash(path) == hashlib.sha256(b"abc").hexdigest()
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("TURBODIFFUSION_CACHE", str(blocked))
    assert full_hash(path) == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    ("platform", "variable", "parts"),
    [
        ("linux", "XDG_CACHE_HOME", ()),
        ("win32", "LOCALAPPDATA", ()),
        ("darwin", "", ("Library", "Caches")),
    ],
)
def test_cache_folder_of_each_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variable: str,
    parts: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.delenv("TURBODIFFUSION_CACHE")
    monkeypatch.setattr(identity.sys, "platform", platform)
    monkeypatch.setattr(identity.Path, "home", lambda: tmp_path)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    assert identity.cache_folder() == tmp_path.joinpath(*parts, "turbodiffusion")
