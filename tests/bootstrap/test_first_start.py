"""A real first start in a folder with a space and non-ASCII letters. Slow: it installs torch.

    python turbo.py test -m slow tests/bootstrap

About a minute and 1.1 GB on disk where torch need not be downloaded.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.bootstrap.checkout import BARE_PYTHON, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first start é") / "a b 日本"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "runs", "output")
    shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


def start(checkout, *words: str) -> subprocess.CompletedProcess[str]:
    cleared = ("TURBODIFFUSION_VENV", "TURBODIFFUSION_TORCH", "PYTHONPATH")
    return subprocess.run(
        [BARE_PYTHON, str(checkout / "turbo.py"), *words],
        capture_output=True,
        encoding="utf-8",
        cwd=checkout.parent,
        env={**{k: v for k, v in os.environ.items() if k not in cleared}, "PYTHONUTF8": "1"},
    )


@pytest.mark.skipif(os.name == "nt", reason="process groups are ended in another way there")
@pytest.mark.parametrize("seconds", [2, 6, 12])
def test_killed_on_the_way(checkout, seconds):
    """No stamp is left by a start that was killed, wherever it was."""
    command = [BARE_PYTHON, str(checkout / "turbo.py"), "models"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, start_new_session=True, **quiet)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (checkout / ".venv" / "turbodiffusion.json").exists()


def test_first_start_then_second(checkout):
    first = start(checkout, "models")
    assert first.returncode == 0, first.stderr
    assert "Ready: torch" in first.stderr
    assert "micro" in first.stdout
    second = start(checkout, "models")
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout == first.stdout


def test_a_removed_package_comes_back(checkout):
    python = checkout / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([python, "-m", "pip", "uninstall", "-qy", "tqdm"], check=True)
    done = start(checkout, "models")
    assert "tqdm" in done.stderr and "Ready" in done.stderr
    assert subprocess.run([python, "-c", "import tqdm"]).returncode == 0


def test_a_package_that_lost_files_comes_back(checkout):
    """After an interruption (no stamp) the recorded sizes of all files are compared."""
    [package] = (checkout / ".venv").glob("**/site-packages/ftfy")
    (package / "fixes.py").write_bytes(b"")
    (checkout / ".venv" / "turbodiffusion.json").unlink()
    assert "Ready" in start(checkout, "models").stderr
    assert (package / "fixes.py").stat().st_size > 0


def test_uninstall_leaves_nothing(checkout):
    done = start(checkout, "uninstall", "--yes")
    assert done.returncode == 0
    assert not (checkout / ".venv").exists()
    assert not (checkout / ".venv.lock").exists()


def test_runs_on_the_python_of_the_tests():
    """The environment is made by the interpreter behind this one, not by a third."""
    version = "import sys; print(sys.version_info[:3])"
    said = subprocess.run([BARE_PYTHON, "-c", version], capture_output=True, text=True).stdout
    assert said.strip() == str(sys.version_info[:3])
