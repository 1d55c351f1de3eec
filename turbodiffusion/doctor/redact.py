"""Take names and secrets out of a text before it is shown to strangers.

Values that this machine knows (home, user, host, secrets in variables) go first, then everything
that looks like a secret by its form. Rather a word too many than one too few.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

SECRET_NAME = re.compile(
    r"token|secret|passw|pwd|credential|api_?key|private|auth|cookie|session", re.I
)
"""Names of variables whose value is hidden whatever it looks like."""

_NAMES = r"(?:token|secret|passw(?:or)?d|passphrase|pwd|api[_-]?key|credentials?|private[_-]?key)"

FORMS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.S), word)
    for pattern, word in (
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", "<key>"),
        (r"\b(?:hf|api_org)_[A-Za-z0-9]{8,}", "<token>"),
        (r"\b(?:gh[pousr]_[A-Za-z0-9]{8,}|github_pat_\w{8,}|glpat-[\w-]{8,})", "<token>"),
        (r"\bsk-[\w-]{8,}", "<key>"),
        (r"\bxox[abprs]-[\w-]{8,}", "<token>"),
        (r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b", "<key>"),
        (r"\bAIza[\w-]{20,}", "<key>"),
        (r"\bpypi-[\w-]{16,}", "<token>"),
        (r"\beyJ[\w-]{8,}\.[\w-]{4,}\.[\w-]*", "<token>"),
        (r"(?<=://)[^/\s@]+@", "<login>@"),
        (r"(?i)\b((?:bearer|basic)\s+)[\w.~+/=-]{8,}", r"\1<token>"),
        (rf"(?i)(--?{_NAMES}[= ]+)(?!<)\S+", r"\1<secret>"),
        (
            rf"(?i)({_NAMES}(?:[_-]\w+)?\\?[\"']?\s*(?:=(?!=)|:)\s*\\?[\"']?)(?!<)[^\s\"',;&\\]{{4,}}",
            r"\1<secret>",
        ),
        (r"(?i)([?&](?:key|signature|sig|x-amz-[\w-]+)=)(?!<)[^&\s\"']+", r"\1<secret>"),
        (r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b", "<mail>"),
        (r"\bGPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "GPU-<uuid>"),
        (r"(?i)\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", "<mac>"),
        (r"(?:(?<=/home/)|(?<=/Users/))[^/\s\"':]+", "<user>"),
        (r"(?i)(?:(?<=[a-z]:\\Users\\)|(?<=[a-z]:\\\\Users\\\\))[^\\\"':\r\n]+", "<user>"),
    )
)
"""Secrets and names by their form, wherever they come from."""


class Redactor:
    """Knows what to hide on one machine.

    Args:
        home, user, host: of this machine.
        variables: the environment; values of those with a telling name are hidden everywhere.
    """

    def __init__(self, home: str, user: str, host: str, variables: Mapping[str, str]) -> None:
        self.words = [(word, "~") for word in _spellings(home) if len(word) > 2]
        secrets = {v for k, v in variables.items() if SECRET_NAME.search(k) and len(v) >= 8}
        paths = {v for v in secrets if os.path.exists(v)}  # SSH_AUTH_SOCK and the like
        self.words += [(value, "<secret>") for value in sorted(secrets - paths, key=len)[::-1]]
        self.names = [(name, word) for name, word in ((user, "<user>"), (host, "<host>"))]

    def __call__(self, text: str) -> str:
        """``text`` without names and secrets."""
        for word, shown in self.words:
            text = re.sub(re.escape(word), shown, text, flags=re.I)
        for pattern, shown in FORMS:
            text = pattern.sub(shown, text)
        for name, shown in self.names:
            if len(name) > 2 and name.lower() not in COMMON:
                text = re.sub(rf"(?<![\w<]){re.escape(name)}(?![\w>])", shown, text, flags=re.I)
        return text


COMMON = {"root", "user", "admin", "runner", "localhost", "ubuntu", "turbodiffusion", "torch"}
"""Names that tell nothing about a person and would make a report unreadable."""


def _spellings(home: str) -> Iterable[str]:
    """The home folder with either slash, and as JSON and Python write backslashes."""
    return dict.fromkeys((home, home.replace("\\", "/"), home.replace("\\", "\\\\")))


def of_this_machine() -> Redactor:
    """The redactor for the running user."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = ""
    return Redactor(str(Path.home()), user, socket.gethostname(), os.environ)
