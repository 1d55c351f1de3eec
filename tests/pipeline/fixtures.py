"""Fixtures of the tests that run whole pipelines; imported by the ``conftest.py`` files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline import tiny
from turbodiffusion.models.cards import CARDS


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the tiny cards, written once."""
    folder = tmp_path_factory.mktemp("models")
    tiny.write_models(folder)
    return folder


@pytest.fixture
def models(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The tiny cards known and their files found; the working directory is an empty folder."""
    for one in (tiny.T2V, tiny.I2V):
        monkeypatch.setitem(CARDS, one.name, one)
    monkeypatch.setenv("TURBODIFFUSION_MODELS", str(model_folder))
    monkeypatch.setenv("TURBODIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return {name: model_folder / file for name, file in tiny.FILES.items()}
