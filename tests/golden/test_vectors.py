"""The golden helper itself: what happens when there is nothing to read."""

from __future__ import annotations

import pytest

from tests.golden.vectors import VARIABLE, golden_files, load_golden


def test_absent_folder_named_by_the_variable_fails(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    [path] = golden_files("dit_*")
    with pytest.raises(pytest.fail.Exception, match="nowhere"):
        load_golden(path)


def test_folder_without_such_a_file_fails(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    [path] = golden_files("dit_*")
    with pytest.raises(pytest.fail.Exception, match=r"dit_\*"):
        load_golden(path)


def test_absent_default_folder_skips(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="nothing_here"):
        load_golden(tmp_path / "nothing_here")
