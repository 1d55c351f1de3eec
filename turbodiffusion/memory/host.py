"""Host memory that is free: Linux, Windows and macOS, containers too; no package needed."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
_CONTAINER = (
    ("memory.max", "memory.current", "memory.stat", "file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "cache"),
)
"""Limit, usage and statistics of a container, and the statistic of its page cache (v2, v1)."""


def free_ram() -> int:
    """Bytes that a new program can use without swapping; page cache counts as free."""
    if sys.platform == "win32":
        return _windows()
    if sys.platform == "darwin":
        return _pages("SC_PHYS_PAGES")  # the system compresses and drops on its own account
    return min(_meminfo(Path("/proc/meminfo")), _container(CGROUP))


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_ram() -> int:
    """Bytes of the largest resident size of this process so far; 0 where it is not told."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _meminfo(path: Path) -> int:
    try:
        lines = path.read_text("ascii").splitlines()
        table = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if ":" in line}
        return table["MemAvailable"]
    except (OSError, ValueError, LookupError):
        return _pages("SC_AVPHYS_PAGES")


def _container(root: Path) -> int:
    """What the container's limit leaves; the page cache in it can be dropped, so it is free."""
    for limit, used, statistics, cache in _CONTAINER:
        try:
            allowed = (root / limit).read_text("ascii").strip()
            if not allowed.isdigit():
                continue
            rows = dict(
                line.split() for line in (root / statistics).read_text("ascii").splitlines()
            )
            taken = int((root / used).read_text("ascii")) - int(rows.get(cache, 0))
            return max(0, int(allowed) - taken)
        except (OSError, ValueError):
            continue
    return sys.maxsize


def _pages(name: str) -> int:
    return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")


class _Status(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = [
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in (
            "total", "free", "total_page", "free_page", "total_virtual", "free_virtual", "extended",
        )),
    ]  # fmt: skip


def _windows() -> int:
    """Free physical memory, or what may still be committed if that is less."""
    status = _Status(length=ctypes.sizeof(_Status))
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    kernel.GlobalMemoryStatusEx(ctypes.byref(status))
    return min(status.free, status.free_page)
