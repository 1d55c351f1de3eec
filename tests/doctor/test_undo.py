"""The copy of an environment: it costs no room, survives what pip does, and comes back whole."""

from __future__ import annotations

import os

import pytest

from tests.doctor.test_setup import tree
from turbodiffusion.doctor.undo import Aside, Snapshot, beside, recover
from turbodiffusion.errors import SetupError


@pytest.fixture
def folder(tmp_path):
    one = tmp_path / "a b é"
    (one / "lib" / "deep").mkdir(parents=True)
    (one / "lib" / "deep" / "module.py").write_text("one")
    (one / "setup.log").write_text("log")
    (one / "bin").mkdir()
    os.symlink("/usr/bin/python3", one / "bin" / "python")
    os.symlink("lib", one / "lib64")
    return one


def test_the_copy_is_made_of_links(folder):
    snapshot = Snapshot(folder)
    inside = "lib/deep/module.py"
    assert os.path.samefile(folder / inside, snapshot.copy / inside)
    assert not os.path.samefile(folder / "setup.log", snapshot.copy / "setup.log")
    assert os.readlink(snapshot.copy / "lib64") == "lib"
    snapshot.discard()
    assert not snapshot.copy.exists() and (folder / inside).read_text() == "one"


def test_replaced_removed_and_new_files_are_undone(folder):
    before = tree(folder)
    snapshot = Snapshot(folder)
    with (folder / "setup.log").open("a") as stream:
        stream.write("more")
    (folder / "lib" / "deep" / "module.py").unlink()
    (folder / "lib" / "deep" / "module.py").write_text("two")
    (folder / "lib64").unlink()
    (folder / "new").write_text("x")
    snapshot.restore()
    assert tree(folder) == before
    assert (folder / "setup.log").read_text() == "logmore"
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]


def test_without_hard_links_the_copy_is_real(folder, monkeypatch):
    def refuse(*_, **__):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    before = tree(folder)
    snapshot = Snapshot(folder)
    (folder / "lib" / "deep" / "module.py").write_text("written in place")
    snapshot.restore()
    assert tree(folder) == before


def test_a_full_disk_stops_before_the_change(folder, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copy2", full)
    before = tree(folder)
    with pytest.raises(SetupError) as caught:
        Snapshot(folder)
    assert caught.value.code == "setup-no-undo"
    assert tree(folder) == before and not beside(folder).exists()


def test_aside_and_back(folder):
    before = tree(folder)
    aside = Aside(folder)
    assert not folder.exists()
    folder.mkdir()
    aside.restore()
    assert tree(folder) == before


def test_recover(folder):
    assert not recover(folder)
    before = tree(folder)
    Snapshot(folder)
    (folder / "new").write_text("x")
    assert recover(folder) and tree(folder) == before
