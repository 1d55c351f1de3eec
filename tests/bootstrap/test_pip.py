"""pip's failures as sentences, its variables, and its progress in few lines."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from turbodiffusion.bootstrap.pip import Pip, explain
from turbodiffusion.bootstrap.progress import Progress
from turbodiffusion.errors import SetupError

LOG = Path("setup.log")

MESSAGES = [
    ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", 4),
    ("OSError: [Errno 122] Disk quota exceeded", 4),
    ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] …", 3),
    ("ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 407 Proxy", 3),
    ("NewConnectionError('…: [Errno -2] Name or service not known')", 3),
    ("ReadTimeoutError: HTTPSConnectionPool: Read timed out.", 3),
    ("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/x'", 3),
    ("ERROR: No matching distribution found for av==18.1.0", 3),
    ("ERROR: Cannot install torch: these package versions have conflicting dependencies.", 3),
    ("ERROR: something new", 3),
    ("", 3),
]
CODES = [
    "disk-full",
    "disk-full",
    "setup-certificate",
    "setup-proxy",
    "setup-network",
    "setup-network",
    "setup-folder",
    "setup-index",
    "setup-conflict",
    "setup-pip",
    "setup-pip",
]


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [(said, status, code) for (said, status), code in zip(MESSAGES, CODES, strict=True)],
)
def test_explain(said, status, code):
    error = explain(said, LOG)
    assert (error.code, error.exit_code) == (code, status)
    assert "setup.log" in error.fix
    assert "Traceback" not in error.message


def test_a_lost_connection_outranks_the_missing_version():
    said = "Retrying … NewConnectionError …\nERROR: No matching distribution found for numpy\n"
    assert explain(said, LOG).code == "setup-network"


def test_the_missing_package_is_named():
    said = "ERROR: No matching distribution found for av==18.1.0\n"
    assert "av==18.1.0" in explain(said, LOG).message


def test_variables(monkeypatch):
    """The user's index and certificate stay, redirections go."""
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("PIP_CERT", "/ca.pem")
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PYTHONPATH", "/foreign")
    child = Pip(Path("python"), LOG).environment()
    assert child["PIP_INDEX_URL"] == "https://mirror.example/simple"
    assert child["PIP_CERT"] == "/ca.pem"
    assert child["PIP_USER"] == "0"
    assert "PIP_TARGET" not in child and "PYTHONPATH" not in child


def test_no_pip(tmp_path):
    assert Pip(tmp_path / "python", LOG).version() == ()


def test_version_of_a_real_pip():
    assert Pip(Path(sys.executable), LOG).version() > (20,)


def test_real_failure_is_logged_and_explained(tmp_path, capfd, monkeypatch):
    log = tmp_path / "setup.log"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SetupError) as caught:
        Pip(Path(sys.executable), log).install(["--dry-run", "surely-not-a-package==1"])
    assert caught.value.code == "setup-index"
    assert "surely-not-a-package" in log.read_text("utf-8")
    assert capfd.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


LINES = [
    "Collecting av",
    "Downloading av-18.1.0-cp311-abi3-manylinux_2_28_x86_64.whl (35.8 MB)",
    "Progress 0 of 35800000",
    "Progress 17900000 of 35800000",
    "Progress 35800000 of 35800000",
    "Downloading tqdm-4.70.1-py3-none-any.whl (78 kB)",
    "Using cached numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.whl (16.9 MB)",
    "Installing collected packages: tqdm, numpy, av",
]


def feed(stream: io.StringIO) -> str:
    ticks = iter(range(1000))
    progress = Progress(stream, clock=lambda: float(next(ticks)))
    for line in LINES:
        progress.feed(line)
    progress.close()
    return stream.getvalue()


def test_progress_in_a_file():
    assert feed(io.StringIO()).splitlines() == [
        "    av 18.1.0 (35.8 MB)",
        "    numpy 2.4.6 (16.9 MB, downloaded earlier)",
        "    unpacking 3 packages …",
    ]


def test_progress_on_a_terminal():
    text = feed(Terminal())
    assert "av 18.1.0: 18 of 36 MB, 8.9 MB/s, 2 s left" in text
    assert "tqdm" not in text
