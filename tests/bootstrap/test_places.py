"""``where`` shows and ``uninstall`` removes what is ours, and nothing else."""

from __future__ import annotations

import pytest

from tests.bootstrap.checkout import make_checkout, make_ready
from turbodiffusion.bootstrap import places
from turbodiffusion.errors import SetupError


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A checkout with an environment, a cache, models of its own and shared ones."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("TURBODIFFUSION_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    environment = make_checkout(tmp_path / "checkout")
    make_ready(environment)
    environment.lock_file.touch()
    hub = tmp_path / "home" / ".cache" / "huggingface" / "hub"
    for folder in (tmp_path / "cache", environment.root / "checkpoints", hub):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(2_500_000))
    monkeypatch.chdir(environment.root)
    return environment


def answer(monkeypatch, *words):
    given = iter(words)
    monkeypatch.setattr("builtins.input", lambda _: next(given))


def test_where(installed, capsys):
    assert places.run("where", [], installed) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:20].strip() for line in lines] == [
        "environment",
        "lock file",
        "cache",
        "models",
        "models from the hub",
    ]
    assert "2.5 MB" in lines[2]
    assert lines[3].endswith("asked for separately")
    assert lines[4].endswith("shared, never removed")
    assert installed.folder.exists()


def test_where_with_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(places, "places", lambda _: [])
    places.run("where", [], make_checkout(tmp_path / "x"))
    assert "Nothing" in capsys.readouterr().out


def exists(installed):
    home = installed.root.parent
    return {
        "environment": installed.folder.exists(),
        "cache": (home / "cache").exists(),
        "models": (installed.root / "checkpoints").exists(),
        "hub": (home / "home" / ".cache" / "huggingface" / "hub" / "file").exists(),
    }


@pytest.mark.parametrize(
    ("arguments", "answers", "left"),
    [
        ([], ["y", "n"], {"models"}),
        ([], ["n", "n"], {"environment", "cache", "models"}),
        ([], ["y", "y"], set()),
        ([], ["n", "y"], {"environment", "cache"}),
        (["--yes"], [], {"models"}),
        (["--yes", "--models"], [], set()),
    ],
)
def test_uninstall(installed, monkeypatch, arguments, answers, left):
    answer(monkeypatch, *answers)
    assert places.run("uninstall", arguments, installed) == 0
    assert {name for name, there in exists(installed).items() if there} == left | {"hub"}


def test_no_answer_removes_nothing(installed, monkeypatch):
    def ended(_):
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    places.run("uninstall", [], installed)
    assert all(exists(installed).values())


def test_a_foreign_environment_is_not_removed(installed):
    (installed.folder / "turbodiffusion-environment").unlink()
    with pytest.raises(SetupError) as caught:
        places.run("uninstall", ["--yes"], installed)
    assert caught.value.code == "setup-folder-taken"
    assert all(exists(installed).values())
