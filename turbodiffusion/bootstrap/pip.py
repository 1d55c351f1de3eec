"""Run pip inside the environment and turn its failures into one sentence.

The user's own pip configuration (indexes, find-links, certificates, proxies, constraints) stays
in force; only settings that would install somewhere else than the environment are overridden.
Progress goes to stderr, because stdout belongs to the command that runs afterwards.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from turbodiffusion.bootstrap.progress import Progress
from turbodiffusion.errors import CapacityError, SetupError, TurboDiffusionError

OLDEST_PIP = (22, 2)
"""The first with --dry-run; distributions still ship older ones."""

RAW_PIP = (24, 1)
"""The first that reports its progress as plain numbers."""

NEW_PIP = "pip==25.3"

CAUSES: tuple[tuple[str, str, str, str], ...] = (
    (
        r"Errno 28|No space left|not enough space|Disk quota exceeded",
        "disk-full",
        "The disk became full while packages were installed.",
        "Free some space and start again; finished downloads are kept.",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError|SSL: ",
        "setup-certificate",
        "The package index's certificate was refused, which a company proxy often causes.",
        "Give pip the proxy's certificate: pip config set global.cert PATH_TO_CA.pem",
    ),
    (
        r"ProxyError|Cannot connect to proxy|407 Proxy",
        "setup-proxy",
        "The proxy refused the connection to the package index.",
        "Check HTTPS_PROXY, or set it for pip: pip config set global.proxy http://HOST:PORT",
    ),
    (
        r"NewConnectionError|Name or service not known|getaddrinfo|name resolution|timed out"
        r"|Connection refused|Network is unreachable|ConnectionError|IncompleteRead|reset by peer"
        r"|Connection broken|NameResolutionError|RemoteDisconnected",
        "setup-network",
        "The package index cannot be reached, and the packages are not on this machine yet.",
        "Connect to the network and start again; what was downloaded is kept.",
    ),
    (
        r"Errno 13|Permission denied|Access is denied|WinError 5\b|Read-only file system",
        "setup-folder",
        "A folder the packages go into cannot be written to.",
        "Move the checkout to a folder of yours, or set TURBODIFFUSION_VENV to one.",
    ),
    (
        r"No matching distribution found for (?P<what>\S+)",
        "setup-index",
        "No package index that pip knows offers {what} for this Python and system.",
        "Use Python 3.12, or check the index in: python -m pip config list",
    ),
    (
        r"conflict is caused by|ResolutionImpossible|conflicting dependencies",
        "setup-conflict",
        "A constraint in pip's own configuration contradicts the pinned versions.",
        "Look for 'constraint' in: python -m pip config list",
    ),
)


class Pip:
    """pip of one interpreter, with a log of everything it wrote on stderr.

    Args:
        python: the interpreter of the environment.
        log: file that receives the complete messages.
    """

    def __init__(self, python: Path, log: Path) -> None:
        self.python = python
        self.log = log

    def environment(self) -> dict[str, str]:
        """The child's variables: without whatever redirects packages out of the environment."""
        redirecting = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")
        kept = {key: value for key, value in os.environ.items() if key not in redirecting}
        return {**kept, "PIP_USER": "0", "PIP_NO_INPUT": "1", "PYTHONUTF8": "1"}

    def ask(self, arguments: Sequence[str], timeout: float = 120.0) -> tuple[int, str]:
        """Exit status and standard output of a quick question; nothing is shown."""
        try:
            done = subprocess.run(
                [str(self.python), "-m", "pip", "--disable-pip-version-check", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self.environment(),
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
            )
        except (OSError, subprocess.TimeoutExpired):
            return 1, ""
        return done.returncode, done.stdout

    def version(self) -> tuple[int, ...]:
        """pip's version, or () when the environment has no working pip."""
        status, text = self.ask(["--version"])
        found = re.match(r"pip (\d+)\.(\d+)", text)
        return tuple(map(int, found.groups())) if status == 0 and found else ()

    def refresh(self) -> None:
        """Bring pip to a release that tells its progress; an older one serves without network."""
        try:
            self.install(["--retries", "1", "--upgrade", NEW_PIP])
        except SetupError:
            if self.version() < OLDEST_PIP:
                raise

    def install(self, arguments: Sequence[str]) -> None:
        """``pip install`` with its progress on stderr; wheels only, nothing is compiled.

        Raises:
            SetupError, CapacityError: with the cause read from pip's messages.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        raw = ["--progress-bar", "raw"] if self.version() >= RAW_PIP else ["--progress-bar", "off"]
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", "install", *raw]
        process = subprocess.Popen(
            [*command, "--no-compile", "--only-binary=:all:", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.environment(),
            encoding="utf-8",
            errors="replace",
        )
        try:
            said = self._follow(process)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if process.returncode:
            raise explain(said, self.log)

    def _follow(self, process: subprocess.Popen[str]) -> str:
        """Log what pip says, show what a waiting person wants, return the last of it."""
        last: deque[str] = deque(maxlen=200)
        progress = Progress(sys.stderr)
        assert process.stdout is not None
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {process.args!r}\n")
            for line in process.stdout:
                progress.feed(line)
                if not line.startswith("Progress "):
                    log.write(line)
                    last.append(line)
        progress.close()
        process.wait()
        return "".join(last)


def explain(said: str, log: Path) -> TurboDiffusionError:
    """The error behind pip's messages, most specific cause first."""
    for pattern, code, sentence, fix in CAUSES:
        if found := re.search(pattern, said):
            sentence = sentence.format(**found.groupdict())
            kind = CapacityError if code == "disk-full" else SetupError
            return kind(code, sentence, f"{fix} (pip's messages: {log})")
    wrong = [line for line in said.splitlines() if line.startswith("ERROR:")]
    sentence = f"pip stopped: {(wrong or ['ERROR: no reason given'])[-1][7:].strip()}"
    return SetupError("setup-pip", sentence, f"Start again; pip's messages are in {log}.")
