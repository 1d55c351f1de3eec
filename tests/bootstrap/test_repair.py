"""What an interrupted installation leaves behind is found and forgotten."""

from __future__ import annotations

import pytest

from turbodiffusion.bootstrap import repair
from turbodiffusion.bootstrap.environment import Environment


@pytest.fixture
def environment(tmp_path):
    made = Environment(tmp_path, tmp_path / ".venv")
    made.folder.mkdir()
    (made.folder / "pyvenv.cfg").write_text("home = x\nversion = 3.11.7\n")
    made.site_packages.mkdir(parents=True)
    return made


def put(environment: Environment, name: str, version: str, content: str = "text") -> None:
    folder = environment.site_packages
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(content)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    record = f"{name}/__init__.py,sha256=x,{len(content)}\n{name}/__pycache__/a.pyc,,\n"
    (info / "RECORD").write_text(record + f"{info.name}/RECORD,,\n")


def test_whole_packages_stay(environment):
    put(environment, "a", "1")
    put(environment, "b", "2")
    assert repair.clean(environment) == []
    assert environment.distributions() == ["a-1.dist-info", "b-2.dist-info"]


@pytest.mark.parametrize("damage", ["short", "missing", "no record", "empty record"])
def test_damaged_packages_are_forgotten(environment, damage):
    put(environment, "a", "1")
    put(environment, "b", "2")
    info = environment.site_packages / "a-1.dist-info"
    if damage == "short":
        (environment.site_packages / "a" / "__init__.py").write_text("te")
    elif damage == "missing":
        (environment.site_packages / "a" / "__init__.py").unlink()
    elif damage == "no record":
        (info / "RECORD").unlink()
    else:
        (info / "RECORD").write_text("")
    assert repair.clean(environment) == ["a-1"]
    assert environment.distributions() == ["b-2.dist-info"]


def test_what_pip_set_aside_is_removed(environment):
    (environment.site_packages / "~orch").mkdir()
    repair.clean(environment)
    assert not (environment.site_packages / "~orch").exists()


@pytest.mark.parametrize(
    ("metadata", "module", "found"),
    [
        ("2.13.0+cu126", "2.13.0+cu126", "2.13.0+cu126"),
        ("2.13.0", "2.13.0+cu130", "2.13.0:cu130"),  # the default index on Linux
        ("2.13.0", "2.13.0+cpu", "2.13.0:cpu"),  # the default index on Windows
        ("2.13.0", "2.13.0", "2.13.0:cpu"),  # macOS
    ],
)
def test_installed_torch(environment, metadata, module, found):
    put(environment, "torch", metadata)
    (environment.site_packages / "torch" / "version.py").write_text(f"__version__ = '{module}'\n")
    assert repair.installed_torch(environment) == found


def test_no_torch(environment):
    assert repair.installed_torch(environment) == ""
    put(environment, "torchvision", "0.28.0")
    assert repair.installed_torch(environment) == ""
