"""The order of the steps: where torch comes from, what is pinned, what is checked before."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from tests.bootstrap.checkout import make_checkout, make_ready
from turbodiffusion.bootstrap import install, torch_source
from turbodiffusion.bootstrap.environment import MARK, Environment
from turbodiffusion.bootstrap.sizes import MB, Size, of_packages, of_torch
from turbodiffusion.bootstrap.tags import Build, Gpu, Machine
from turbodiffusion.errors import CapacityError, SetupError

CPU = Machine((), (), "Linux", "x86_64")
ADA = Machine((Gpu("RTX 4090", (8, 9)),), (580, 65, 6), "Linux", "x86_64")
WINDOWS = Machine((Gpu("RTX 4090", (8, 9)),), (591, 74), "Windows", "AMD64")
MAC = Machine((), (), "Darwin", "arm64")


class FakePip:
    """Answers like a pip whose find-links folder and wheel index hold what is given."""

    def __init__(self, find_links: tuple[str, ...] = (), wheel_index: tuple[str, ...] = ()):
        self.find_links, self.wheel_index = find_links, wheel_index
        self.installed: list[list[str]] = []

    def ask(self, arguments, timeout=0.0):
        if "--no-index" in arguments:
            return (0 if arguments[-1].removeprefix("torch==") in self.find_links else 1), ""
        listed = ", ".join(self.wheel_index)
        return (0, f"torch (2.13.0)\nAvailable versions: {listed}\n") if listed else (1, "")

    def install(self, arguments):
        self.installed.append(list(arguments))


@pytest.fixture
def environment(tmp_path):
    made = make_checkout(tmp_path / "a b é")
    made.folder.mkdir()
    return made


def source(environment, pip, machine, build):
    return torch_source.install_torch(environment, pip, machine, build, [])


def test_find_links_wins_over_everything(environment, capsys):
    pip = FakePip(("2.13.0+cpu",), ("2.13.0+cpu",))
    assert source(environment, pip, CPU, Build("2.13.0", "cpu")) == ("2.13.0+cpu", "")
    assert pip.installed == [["--no-index", "--no-deps", "torch==2.13.0+cpu"]]
    assert "find-links folder: nothing to download" in capsys.readouterr().err


def test_a_cpu_wheel_in_find_links_is_not_for_a_gpu(environment):
    pip = FakePip(("2.13.0+cpu",), ("2.13.0+cu130",))
    version, index = source(environment, pip, ADA, Build("2.13.0", "cu130"))
    assert version == "2.13.0+cu130"
    assert index.endswith("/cu130")


def test_wheel_index(environment, capsys):
    pip = FakePip((), ("2.14.0+cpu", "2.13.0+cpu"))
    assert source(environment, pip, CPU, Build("2.13.0", "cpu")) == ("2.13.0+cpu", "")
    [arguments] = pip.installed
    assert arguments[:2] == ["--no-deps", "torch==2.13.0+cpu"]
    assert arguments[-2] == "--index-url" and arguments[-1].endswith("/cpu")
    assert "192 MB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("machine", "build", "size"),
    [
        (CPU, Build("2.13.0", "cpu"), "2.7 GB"),
        (ADA, Build("2.13.0", "cu130"), "2.7 GB"),
        (WINDOWS, Build("2.13.0", "cu130"), "122 MB"),
    ],
    ids=["cpu", "gpu", "windows"],
)
def test_default_index_is_said_with_its_size(environment, capsys, machine, build, size):
    pip = FakePip()
    version, index = source(environment, pip, machine, build)
    assert (version, index) == ("2.13.0", "")
    assert pip.installed == [["--no-deps", "torch==2.13.0"]]
    said = capsys.readouterr().err
    assert "wheel index cannot be reached" in said
    assert f"default package index: about {size}" in said


def test_mac_asks_the_default_index_only(environment, capsys):
    pip = FakePip(wheel_index=("2.13.0+cpu",))
    assert source(environment, pip, MAC, Build("2.13.0", "cpu")) == ("2.13.0", "")
    assert "cannot be reached" not in capsys.readouterr().err


@pytest.mark.parametrize("present", ["2.13.0+cpu", "2.13.0:cpu"])
def test_torch_in_place_is_kept(environment, monkeypatch, present):
    monkeypatch.setattr(torch_source.repair, "installed_torch", lambda _: present)
    pip = FakePip(wheel_index=("2.13.0+cpu",))
    version, _ = source(environment, pip, CPU, Build("2.13.0", "cpu"))
    assert version == present.partition(":")[0]
    assert pip.installed == []


def test_a_fallback_build_is_kept_while_the_index_is_away(environment, monkeypatch):
    monkeypatch.setattr(torch_source.repair, "installed_torch", lambda _: "2.13.0:cu130")
    pip = FakePip()
    assert source(environment, pip, CPU, Build("2.13.0", "cpu")) == ("2.13.0", "")
    assert pip.installed == []


def fill(environment, monkeypatch, machine, build, extras=()):
    pip = FakePip((build.exact,))
    pip.version = lambda: (25, 3)
    monkeypatch.setattr(install, "Pip", lambda *_: pip)
    monkeypatch.setattr(install, "_write_path_file", lambda _: None)
    monkeypatch.setattr(install, "_write_command", lambda _: None)
    monkeypatch.setattr(install, "_try_out", lambda *_: None)
    install._fill(environment, extras, machine, build)
    return pip.installed[1]


def test_the_rest_is_installed_with_torch_pinned(environment, monkeypatch):
    arguments = fill(environment, monkeypatch, CPU, Build("2.13.0", "cpu"), ["test"])
    pins = environment.folder / "torch.txt"
    assert pins.read_text() == "torch==2.13.0+cpu\n"
    requirements = environment.root / "requirements"
    assert arguments == [
        *("-r", str(requirements / "runtime.txt"), "-r", str(requirements / "test.txt")),
        *("-c", str(requirements / "lock.txt"), "-c", str(pins)),
    ]


def test_windows_gets_its_triton(environment, monkeypatch):
    arguments = fill(environment, monkeypatch, WINDOWS, Build("2.11.0", "cu128"))
    assert "triton-windows==3.6.0.post26" in arguments
    cpu = fill(environment, monkeypatch, WINDOWS, Build("2.13.0", "cpu"))
    assert not any(word.startswith("triton") for word in cpu)


Usage = namedtuple("Usage", "total used free")


def test_full_disk_is_noticed_before_the_download(environment, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9e9, 8e9, 0.5e9))
    pip = FakePip(wheel_index=("2.13.0+cpu",))
    with pytest.raises(CapacityError, match=r"0\.5 GB free; the set-up needs 1\.\d GB") as caught:
        source(environment, pip, CPU, Build("2.13.0", "cpu"))
    assert caught.value.exit_code == 4
    assert pip.installed == []


def test_disk_full_on_the_way(environment, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device", "/x/torch.txt")

    monkeypatch.setattr(install, "_set_up", fail)
    with pytest.raises(CapacityError) as caught:
        install.ensure(Environment(environment.root, environment.folder.parent / "new"))
    assert caught.value.code == "disk-full"


def test_a_folder_of_somebody_else_is_left_alone(environment):
    (environment.folder / "thesis.tex").touch()
    with pytest.raises(SetupError) as caught:
        install.ensure(environment)
    assert caught.value.code == "setup-folder-taken"
    assert (environment.folder / "thesis.tex").exists()


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_python_without_venv(environment, monkeypatch, missing):
    real = install.importlib.util.find_spec
    monkeypatch.setattr(
        install.importlib.util, "find_spec", lambda name: None if name == missing else real(name)
    )
    with pytest.raises(SetupError) as caught:
        install.ensure(environment)
    assert caught.value.code == "setup-no-venv"
    assert "-venv" in caught.value.fix and "python.org" in caught.value.fix


def test_venv_that_fails(environment, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="a\nError: no ensurepip wheel\n")
    monkeypatch.setattr(install.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SetupError, match="no ensurepip wheel") as caught:
        install._make(environment)
    assert caught.value.code == "setup-venv"


def test_unreadable_place(tmp_path):
    (tmp_path / "file").touch()
    environment = Environment(tmp_path, tmp_path / "file" / "venv")
    with pytest.raises(SetupError) as caught:
        install.ensure(environment)
    assert caught.value.code == "setup-folder"


def test_broken_repair_is_made_anew_once(environment, monkeypatch):
    """A repaired environment that does not import is thrown away; a fresh one is reported."""
    calls = []

    def fill_badly(*_):
        calls.append("fill")
        raise SetupError("setup-broken", "x", "y")

    monkeypatch.setattr(install, "_make", lambda _: bool(calls))
    monkeypatch.setattr(install, "_remove", lambda _: calls.append("remove"))
    monkeypatch.setattr(install, "_fill", fill_badly)
    monkeypatch.setattr(install.gpu, "read_machine", lambda: CPU)
    with pytest.raises(SetupError, match="setup-broken"):
        install.ensure(environment)
    assert calls == ["fill", "remove", "fill"]


def test_path_file_finds_the_checkout(tmp_path):
    environment = make_checkout(tmp_path / "sp ace é 日本")
    command = [sys.executable, "-m", "venv", "--without-pip", str(environment.folder)]
    subprocess.run(command, check=True)
    install._write_path_file(environment)
    for variables in ({"LC_ALL": "C", "PYTHONUTF8": "0"}, {}):
        done = subprocess.run(
            [
                str(environment.python),
                "-c",
                "from turbodiffusion import bootstrap; print('found')",
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **variables},
        )
        assert done.stdout.strip() == "found", done.stderr


def test_command_of_the_activated_environment(tmp_path):
    environment = make_checkout(tmp_path / "sp ace é")
    make_ready(environment)
    install._write_path_file(environment)
    install._write_command(environment)
    name = "turbodiffusion.cmd" if os.name == "nt" else "turbodiffusion"
    path = f"{environment.python.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [shutil.which(name, path=path), "fail", "a b"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
    )
    assert done.stdout == "ran ['fail', 'a b'] True\n", done.stderr
    assert done.returncode == 2


def test_an_interrupted_venv_is_made_again(tmp_path, capsys):
    """pip is missing when the very first step was cut."""
    environment = make_checkout(tmp_path / "x")
    command = [sys.executable, "-m", "venv", "--without-pip", str(environment.folder)]
    subprocess.run(command, check=True)
    (environment.folder / MARK).touch()
    assert install._make(environment) is True
    assert "Making a private Python" in capsys.readouterr().err
    assert install._make(environment) is False


def test_sizes():
    assert of_torch(CPU, Build("2.13.0", "cpu")) == Size(192 * MB, 699 * MB)
    assert of_torch(CPU, Build("2.13.0", "cu130"), True).download_text == "2.7 GB"
    assert of_torch(WINDOWS, Build("2.13.0", "cpu"), True).download_text == "122 MB"
    assert of_packages(CPU, ["test"]).download > of_packages(CPU, []).download
    assert Size(0, 5).text == "nothing to download"
