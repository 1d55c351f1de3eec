"""The stamp: what makes an environment trusted, and everything that takes the trust away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.bootstrap.checkout import make_checkout, make_ready
from turbodiffusion.bootstrap.environment import STAMP, Environment
from turbodiffusion.errors import SetupError


@pytest.fixture
def ready(tmp_path):
    environment = make_checkout(tmp_path / "a b é")
    make_ready(environment, ("test",))
    return environment


def test_first_start(tmp_path):
    assert make_checkout(tmp_path / "x").outdated() == "first start"


def test_ready(ready):
    assert ready.outdated() == ""
    assert ready.outdated(["test"]) == ""


def test_the_folder_may_be_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_VENV", str(tmp_path / "elsewhere"))
    assert Environment(tmp_path).folder == tmp_path / "elsewhere"
    monkeypatch.delenv("TURBODIFFUSION_VENV")
    assert Environment(tmp_path).folder == tmp_path / ".venv"


def change(environment: Environment, name: str) -> None:
    with (environment.root / "requirements" / name).open("a") as stream:
        stream.write("more\n")


@pytest.mark.parametrize("name", ["runtime.txt", "lock.txt"])
def test_changed_requirements(ready, name):
    change(ready, name)
    assert ready.outdated() == "the requirements have changed"


def test_changed_test_requirements_concern_only_the_tests(ready):
    change(ready, "test.txt")
    assert ready.outdated() == ""
    assert ready.outdated(["test"]) == "the requirements have changed"


def test_line_endings_are_no_change(ready):
    path = ready.root / "requirements" / "lock.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert ready.outdated() == ""


def test_missing_extra(tmp_path):
    environment = make_checkout(tmp_path / "x")
    make_ready(environment)
    assert "test packages" in environment.outdated(["test"])


def test_other_python(ready):
    path = ready.folder / "pyvenv.cfg"
    words = [
        "version = 3.9.99" if line.startswith("version") else line
        for line in path.read_text("utf-8").splitlines()
    ]
    path.write_text("\n".join(words), "utf-8")
    assert ready.outdated() != ""


def test_python_gone(ready):
    path = ready.folder / "pyvenv.cfg"
    home = ready.settings()["home"]
    path.write_text(path.read_text("utf-8").replace(f"home = {home}", "home = /nowhere"), "utf-8")
    assert ready.outdated() == "the Python it was made with is gone"


def test_interpreter_removed(ready):
    ready.python.unlink()
    assert "gone" in ready.outdated()


def test_interrupted(ready):
    ready.drop_stamp()
    assert ready.outdated() == "the last set-up did not finish"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"made": {}}', "\x00\xff"])
def test_unreadable_stamp(ready, text):
    (ready.folder / STAMP).write_text(text, "utf-8")
    assert ready.outdated() == "the last set-up did not finish"


def test_replaced_package(ready):
    old = ready.site_packages / "torch-2.13.0+cpu.dist-info"
    old.rename(ready.site_packages / "torch-2.14.0.dist-info")
    assert ready.outdated() == "torch-2.13.0+cpu is no longer there"


def test_added_packages_are_the_users_business(ready):
    (ready.site_packages / "jupyter-1.0.dist-info").mkdir()
    assert ready.outdated() == ""


def test_moved_checkout(ready, tmp_path):
    moved = tmp_path / "moved"
    ready.root.rename(moved)
    assert Environment(moved, moved / ".venv").outdated() == "the requirements have changed"


def test_other_tag_asked_for(ready, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_TORCH", "cpu")
    assert ready.outdated() == ""
    monkeypatch.setenv("TURBODIFFUSION_TORCH", "cu130")
    assert "asks for cu130" in ready.outdated()


def test_drop_stamp_tells_the_extras(ready):
    assert ready.drop_stamp() == ["test"]
    assert ready.drop_stamp() == []


def test_stamp_appears_whole(ready, monkeypatch):
    """A crash while writing leaves no stamp under its name."""
    ready.drop_stamp()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("cut")))
    with pytest.raises(OSError, match="cut"):
        ready.write_stamp([], "cpu", "2.13.0")
    assert ready.outdated() == "the last set-up did not finish"


def test_stamp_content(ready):
    stamp = json.loads((ready.folder / STAMP).read_text("utf-8"))
    assert stamp["tag"] == "cpu"
    assert stamp["distributions"] == ["torch-2.13.0+cpu.dist-info"]


def test_lock_excludes_and_is_freed_by_death(tmp_path, capfd):
    environment = Environment(tmp_path, tmp_path / ".venv")
    script = (
        "import sys, time\n"
        "from turbodiffusion.bootstrap.environment import Environment\n"
        f"with Environment({str(tmp_path)!r}, {str(tmp_path / '.venv')!r}).locked():\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert holder.stdout.readline().strip() == b"held"
    entered = threading.Event()

    def enter() -> None:
        with environment.locked():
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.7)
    holder.kill()
    holder.wait()
    assert entered.wait(5)
    thread.join()
    assert "Waiting for another start" in capfd.readouterr().err


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind here")
def test_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(SetupError) as caught, Environment(tmp_path, tmp_path / "v").locked():
        pass
    assert caught.value.code == "setup-folder"
    tmp_path.chmod(0o700)
