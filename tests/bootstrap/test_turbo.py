"""``turbo.py`` as a user starts it: words, exit status, old Pythons, time added."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import turbo as door
from tests.bootstrap.checkout import ROOT, make_checkout, make_ready, turbo


@pytest.fixture
def bare(tmp_path):
    return make_checkout(tmp_path / "a b é")


@pytest.fixture
def ready(bare):
    make_ready(bare, ("test",))
    return bare


@pytest.mark.parametrize("words", [[], ["help"], ["--help"], ["-h"]])
def test_help_names_the_two_commands(bare, words):
    done = turbo(bare, *words)
    assert done.returncode == 0
    assert "python turbo.py generate" in done.stdout
    assert "python turbo.py test" in done.stdout
    assert not bare.folder.exists()


def test_commands_go_through(ready):
    done = turbo(ready, "generate", "a red circle", "--seed", "7")
    assert done.stdout == "ran ['generate', 'a red circle', '--seed', '7'] True\n"
    assert (done.returncode, done.stderr) == (0, "")


def test_exit_status_goes_through(ready):
    assert turbo(ready, "fail").returncode == 2


def test_started_by_the_environments_own_python(ready):
    done = turbo(ready, "models", python=str(ready.python))
    assert done.stdout == "ran ['models'] True\n"


def test_a_folder_named_like_the_package_does_not_get_in_the_way(ready):
    other = ready.root.parent / "turbodiffusion"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('wrong package')")
    assert turbo(ready, "models").returncode == 0


def test_test_starts_pytest_in_the_checkout(ready):
    (ready.site_packages / "pytest.py").write_text("import os, sys; print(os.getcwd(), sys.argv)")
    done = turbo(ready, "test", "-k", "tags")
    assert done.stdout.startswith(str(ready.root))
    assert "'-k', 'tags'" in done.stdout


@pytest.mark.parametrize("command", [["doctor"], ["errors"], ["setup", "--dry-run"]])
def test_some_commands_never_install(bare, command):
    done = turbo(bare, *command)
    assert done.stdout == f"ran {command} False\n"
    assert not bare.folder.exists()


def test_a_missing_module_is_a_sentence(bare):
    done = turbo(bare, "doctor", "torch")
    if done.returncode == 0:
        pytest.skip("this Python has torch of its own")
    assert done.returncode == 3
    assert "setup-incomplete" in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_are_one_sentence_and_a_fix(bare):
    done = turbo(bare, "models", TURBODIFFUSION_TORCH="cu118")
    assert done.returncode == 3
    assert re.search(r"error \[setup-torch-tag\]: .*cu118.*\n  fix: ", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_second_start_adds_little_time(ready):
    """Median of five starts against the same command without the door; asked for: 0.3 s."""
    python = str(ready.python)
    script = f"import sys; sys.path.insert(0, {str(ready.root)!r}); "
    script += "from turbodiffusion.cli.main import main; main(['models'])"
    added = []
    for _ in range(5):
        begun = time.perf_counter()
        turbo(ready, "models")
        through = time.perf_counter() - begun
        begun = time.perf_counter()
        subprocess.run([python, "-c", script], check=True, capture_output=True)
        added.append(through - (time.perf_counter() - begun))
    assert sorted(added)[2] < 0.3


def test_nothing_but_the_standard_library_is_imported(bare):
    """``-S`` hides every installed package; ``where`` loads all of the bootstrap."""
    script = (
        "import sys; sys.path.insert(0, '.')\n"
        "from turbodiffusion.bootstrap import install, main, places\n"
        "names = {m.partition('.')[0] for m in sys.modules}\n"
        "print(sorted(names - set(sys.stdlib_module_names) - {'turbodiffusion', '__main__'}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() in ("[]", "['sitecustomize']")


FOUND = {"python3.12": "/opt/python3.12"}

INTERPRETERS = [
    ((2, 7, 18), 64, {}, "is Python 2.7.18", "Install Python 3.12"),
    ((3, 6, 15), 64, FOUND, "is Python 3.6.15", '"/opt/python3.12" turbo.py'),
    ((3, 9, 0), 64, {}, "is Python 3.9.0", "Install Python 3.12"),
    ((3, 14, 0), 64, FOUND, "is Python 3.14.0", '"/opt/python3.12" turbo.py'),
    ((3, 12, 1), 32, {}, "(32 bit)", "Install Python 3.12 (64 bit)"),
]


@pytest.mark.parametrize(("version", "bits", "found", "sentence", "fix"), INTERPRETERS)
def test_unsuitable_python(version, bits, found, sentence, fix):
    said, advice = door.complaint(version, bits, "/usr/bin/python", found.get)
    assert sentence in said and "3.10, 3.11, 3.12 or 3.13" in said
    assert fix in advice


@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_suitable_python(minor):
    assert door.complaint((3, minor, 0), 64, "python", FOUND.get) is None


def old_interpreters() -> list[str]:
    """Real Pythons below 3.10 on this machine, on PATH or where pyenv keeps them."""
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [str(path) for minor in "6789" for path in kept.glob(f"3.{minor}.*/bin/python")]
    found += [str(path) for path in kept.glob("2.7.*/bin/python")]
    named = (shutil.which(f"python{version}") for version in ("2.7", "3.6", "3.7", "3.8", "3.9"))
    return found or [path for path in named if path and "shims" not in path]


@pytest.mark.parametrize("python", old_interpreters())
def test_real_old_python(bare, python):
    done = turbo(bare, "generate", "x", python=python)
    assert done.returncode == 3
    assert done.stderr.startswith("error [setup-python]: turbodiffusion needs a 64-bit Python")
    assert len(done.stderr.splitlines()) == 2
    assert done.stdout == ""


@pytest.mark.skipif(os.name == "nt", reason=".ci/run is a shell script")
def test_ci_sets_the_golden_folder_and_calls_the_door(bare):
    (bare.root / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", bare.root / ".ci")
    script = "import os, sys; print(os.environ['TURBODIFFUSION_GOLDEN'], sys.argv[1:]); sys.exit(5)"
    (bare.root / "turbo.py").write_text(script)
    (bare.root.parent / "shared" / "golden").mkdir(parents=True)
    kept = {key: value for key, value in os.environ.items() if key != "TURBODIFFUSION_GOLDEN"}
    done = subprocess.run(
        ["bash", str(bare.root / ".ci" / "run")], capture_output=True, text=True, env=kept
    )
    assert done.returncode == 5, done.stderr
    assert done.stdout == f"{bare.root.parent / 'shared' / 'golden'} ['test']\n"


@pytest.mark.skipif(os.name == "nt", reason=".ci/run is a shell script")
def test_ci_without_python_fails(bare, tmp_path):
    (bare.root / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", bare.root / ".ci")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname"):
        (tools / name).symlink_to(shutil.which(name))
    (bare.root.parent / "shared" / "golden").mkdir(parents=True)
    done = subprocess.run(
        [str(tools / "bash"), str(bare.root / ".ci" / "run")],
        capture_output=True,
        text=True,
        env={"PATH": str(tools)},
    )
    assert done.returncode == 3
    assert "No Python 3.10 to 3.13" in done.stderr
