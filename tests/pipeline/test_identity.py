"""Which weights made a video."""

from __future__ import annotations

import hashlib
import threading

import pytest

from turbodiffusion.pipeline import identity
from turbodiffusion.pipeline.identity import WeightIdentity, differing_parts


def test_every_part_has_its_sha256(models):
    parts = {"dit": models["bf16"], "tokenizer": models["tokenizer"]}
    facts = WeightIdentity(parts).as_dict()
    for part, path in parts.items():
        assert facts[part]["file"] == path.name
        assert facts[part]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(facts["dit"]["hash"]) == 64 and "hash" not in facts["tokenizer"]


def test_large_files_are_hashed_beside_the_work(models, monkeypatch):
    go = threading.Event()

    def slow(path):
        assert go.wait(10)
        return "f" * 64

    monkeypatch.setattr(identity, "full_hash", slow)
    monkeypatch.setattr(identity, "SMALL", 0)
    found = WeightIdentity({"vae": models["vae"]})
    assert not found.ready()
    go.set()
    assert found.as_dict()["vae"]["sha256"] == "f" * 64
    assert found.ready()


def test_a_file_that_goes_away_is_said(models, monkeypatch):
    def gone(path):
        raise FileNotFoundError("it went away")

    monkeypatch.setattr(identity, "full_hash", gone)
    monkeypatch.setattr(threading.Thread, "start", lambda self: self.run())
    monkeypatch.setattr(threading.Thread, "join", lambda self: None)
    with pytest.warns(UserWarning, match="sha256 of the vae is unknown"):
        facts = WeightIdentity({"vae": models["vae"]}).as_dict()
    assert "sha256" not in facts["vae"]


def test_folders_of_several_files(models, monkeypatch):
    class Folder:
        files = (models["vae"], models["text"])

    monkeypatch.setattr(identity, "read_header", lambda path: Folder)
    monkeypatch.setattr(identity, "quick_hash", lambda path: "q")
    got = WeightIdentity({"dit": models["vae"].parent}).as_dict()["dit"]["sha256"]
    lines = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in Folder.files]
    assert got == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_differing_parts():
    here = {"dit": {"file": "b", "hash": "1", "sha256": "2"}, "vae": {"file": "v", "hash": "3"}}
    assert differing_parts({"dit": {"file": "a", "hash": "1", "sha256": "2"}}, here) == []
    assert differing_parts({"dit": {"hash": "1", "sha256": "x"}, "vae": {"hash": "3"}}, here) == [
        "dit"
    ]
    assert differing_parts(None, here) == []
