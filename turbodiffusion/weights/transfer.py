"""One file from a stream to its place, whatever happens on the way.

Bytes are appended to a partial file beside the final place, which is therefore at every moment a
prefix of the whole. A broken connection, a full disk, Ctrl-C or a killed process leave it there,
and the next attempt asks for the rest. Only a file of the right size whose hash was compared gets
its final name. A hash that differs can come from a partial file that was damaged on the disk, so
the file is fetched once more from the beginning before that is an error.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from turbodiffusion.errors import CapacityError, TurboDiffusionError, WeightsError
from turbodiffusion.weights import identity

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each new attempt. As many attempts in a row may bring no byte."""

LONGEST_PAUSE = 60.0
"""Seconds that a server's Retry-After is obeyed for."""

Stream = AbstractContextManager[tuple[int, Iterator[bytes]]]


class Watch(Protocol):
    """Told what is going on; may raise to stop it."""

    def moved(self, count: int) -> None:
        """``count`` more bytes are on the disk; negative where they had to be thrown away."""

    def note(self, text: str) -> None:
        """Something the user should know: a retry, a file fetched again."""


def transfer(
    final: Path,
    partial: Path,
    size: int,
    open_stream: Callable[[int], Stream],
    watch: Watch,
    *,
    sha256: str = "",
    git_id: str = "",
    explain: Callable[[BaseException], TurboDiffusionError],
) -> str:
    """Complete ``partial``, compare it and give it the name ``final``; returns its sha256.

    Args:
        final, partial: places on one disk; ``partial`` may hold what came earlier.
        size: bytes of the whole file.
        open_stream: a context manager for the bytes from an offset on; it gives the offset at
            which they really start (that one, or 0) and the pieces.
        sha256, git_id: what the whole must hash to, ``""`` where it is unknown.
        explain: the error to raise when ``PAUSES`` attempts in a row brought nothing.

    Raises:
        CapacityError: the disk is full. WeightsError: the bytes are wrong twice.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    for again in (True, False):
        resumed = _complete(partial, size, open_stream, watch, explain)
        found = digests(partial, bool(git_id), watch)
        wrong = (sha256 and found[0] != sha256) or (git_id and found[1] != git_id)
        if not wrong:
            os.replace(partial, final)
            identity.remember(final, found[0])
            return found[0]
        partial.unlink()
        watch.moved(-size)
        if again and resumed:
            watch.note("what had been kept of it was damaged; once more from the start")
        elif again:
            watch.note("wrong bytes came; once more from the start")
    raise wrong_hash(final, found[0] if sha256 else found[1], sha256 or git_id)


def wrong_hash(path: Path, found: str, wanted: str) -> WeightsError:
    """The error for bytes that are not the published ones."""
    return WeightsError(
        "weights-hash",
        f"{path} has the hash {found}, and {wanted} is published.",
        "Delete the file if it is there and fetch it again; if that repeats, the mirror in "
        "HF_ENDPOINT or a proxy changes it.",
    )


def digests(path: Path, git: bool, watch: Watch | None = None) -> tuple[str, str]:
    """sha256 of a file and, with ``git``, the object id that git gives it (else "")."""
    sha, git_sha = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
    git_sha.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while piece := file.read(identity.CHUNK):
            sha.update(piece)
            if git:
                git_sha.update(piece)
            if watch:
                watch.moved(0)
    return sha.hexdigest(), git_sha.hexdigest() if git else ""


def _complete(
    partial: Path,
    size: int,
    open_stream: Callable[[int], Stream],
    watch: Watch,
    explain: Callable[[BaseException], TurboDiffusionError],
) -> bool:
    """Append until ``size`` bytes are there; True if some were there before."""
    here = partial.stat().st_size if partial.exists() else 0
    watch.moved(here)
    if here > size:  # not a prefix of this file
        partial.unlink()
        watch.moved(-here)
        here = 0
    resumed, failures = here > 0, 0
    while here < size or not partial.exists():
        error: BaseException = EOFError(f"the stream ended after {here} of {size} bytes")
        try:
            _append(partial, here, size, open_stream, watch)
        except TurboDiffusionError:
            raise
        except Exception as failure:
            if isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_full(partial, size) from failure
            if not _passing(failure):
                raise explain(failure) from failure
            error = failure
        now = partial.stat().st_size if partial.exists() else 0
        if now >= size:
            break
        failures = 0 if now > here else failures + 1
        if failures > len(PAUSES):
            raise explain(error) from error
        pause = min(_retry_after(error) or PAUSES[max(failures - 1, 0)], LONGEST_PAUSE)
        watch.note(f"{_short(error)}; going on in {pause:g} s")
        _sleep(pause, watch)
        here = now
    return resumed


def _append(
    partial: Path, here: int, size: int, open_stream: Callable[[int], Stream], watch: Watch
) -> None:
    with open_stream(here) as (start, pieces):
        mode = "ab" if start == here else "wb"  # a server without ranges begins again
        if start not in (0, here):
            raise OSError(f"asked for byte {here}, got byte {start}")
        watch.moved(start - here)
        written = start
        with partial.open(mode, buffering=0) as file:
            for piece in pieces:
                piece = piece[: size - written]
                done = _write(file, piece)
                written += done
                watch.moved(done)
                if written >= size:
                    return


def _write(file: Any, piece: bytes) -> int:
    """All of ``piece``; a raw file may take it in parts."""
    view, done = memoryview(piece), 0
    while done < len(view):
        done += file.write(view[done:])
    return done


def _passing(error: Exception) -> bool:
    """Whether it may work a moment later: connections, time-outs, 408, 429 and 5xx."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in (408, 416, 425, 429) or status >= 500
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"TransportError", "ConnectionError", "TimeoutError", "StreamError"})


def _retry_after(error: BaseException) -> float | None:
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:  # absent, or a date
        return None


def _short(error: BaseException) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status:
        return f"the server answered {status}"
    return (str(error).strip().split("\n", 1)[0] or type(error).__name__)[:80]


def _sleep(seconds: float, watch: Watch) -> None:
    """Wait, but notice within a moment that the run was stopped."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        watch.moved(0)
        time.sleep(min(left, 0.1))


def disk_full(path: Path, size: int) -> CapacityError:
    """The error when the disk runs full on the way."""
    here = path.stat().st_size if path.exists() else 0
    return CapacityError(
        "disk-full",
        f"The disk of {path.parent} is full after {here / 1e9:.2f} of {size / 1e9:.2f} GB.",
        "Make room and run the same command: it goes on where it stopped.",
    )
