"""Disks, folders, memory, and checkpoint files that are damaged."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from turbodiffusion.doctor.facts import Folder, Memory
from turbodiffusion.doctor.readings.interpreter import Target
from turbodiffusion.errors import TurboDiffusionError

NETWORK = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "afs", "lustre", "ceph", "drvfs")
MANY_FILES = 40


def read_folders(target: Target) -> tuple[Folder, ...]:
    """The folders that are written to, each with the room on its disk."""
    from turbodiffusion.weights.places import search_folders

    home = Path.home()
    hub = os.environ.get("HF_HUB_CACHE") or Path(
        os.environ.get("HF_HOME") or home / ".cache" / "huggingface"
    )
    triton = os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache"
    wanted = (
        ("environment", target.environment.folder),
        ("models", search_folders()[0]),
        ("hub cache", Path(hub)),
        ("compiled kernels", Path(triton)),
        ("temporary files", Path(tempfile.gettempdir())),
    )
    return tuple(read_folder(what, Path(os.path.abspath(path))) for what, path in wanted)


def read_folder(what: str, path: Path) -> Folder:
    """A folder, or the nearest one above it that exists."""
    there = next(p for p in (path, *path.parents) if p.exists() or p == p.parent)
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        free = 0
    writable = os.access(there, os.W_OK | os.X_OK)
    return Folder(what, str(path), free, writable, network_system(str(there)))


def network_system(path: str, mounts: str = "/proc/mounts") -> str:
    """The file system behind ``path`` if it is one that lies elsewhere, else ""."""
    try:
        with open(mounts, encoding="utf-8", errors="replace") as stream:
            rows = [line.split()[:3] for line in stream]
    except OSError:
        return ""
    best, kind = "", ""
    for row in rows:
        if len(row) == 3 and len(row[1]) >= len(best) and _under(path, row[1]):
            best, kind = row[1], row[2]
    return kind if kind.startswith(NETWORK) else ""


def _under(path: str, mount: str) -> bool:
    return path == mount or path.startswith(mount.rstrip("/") + "/")


def read_memory() -> Memory:
    """Memory in bytes; zeros where the system does not tell."""
    if sys.platform == "win32":
        return _windows_memory()
    rows = _meminfo()
    if rows:
        limit = cgroup_limit()
        total = rows.get("MemTotal", 0)
        return Memory(
            total,
            rows.get("MemAvailable", 0),
            rows.get("SwapTotal", 0),
            limit if limit < total else 0,
        )
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        total = 0
    return Memory(total, total)


def _meminfo() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {p[0].rstrip(":"): int(p[1]) * 1024 for p in pairs if len(p) > 1 and p[1].isdigit()}


def cgroup_limit(root: str = "/sys/fs/cgroup") -> int:
    """The container's memory limit in bytes, version 2 or 1; 0 without one."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = Path(root, name).read_text("ascii").strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else 0
    return 0


def _windows_memory() -> Memory:
    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *(
                (name, ctypes.c_ulonglong)
                for name in ("total", "free", "page", "page_free", "a", "b", "c")
            ),
        )

    status = Status()
    status.length = ctypes.sizeof(Status)
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    values = (status.total, status.free, max(0, status.page - status.total))
    return Memory(*values)


def damaged_files() -> tuple[tuple[str, str, str], ...]:
    """Checkpoints in the searched folders whose first and last bytes are wrong: (path, sentence,
    fix). Only headers are read."""
    from turbodiffusion.weights.places import search_folders

    found = []
    for folder in search_folders():
        paths = [p for p in sorted(folder.glob("*")) if p.suffix in (".safetensors", ".pth")]
        for path in paths[:MANY_FILES]:
            if complaint := _complaint(path):
                found.append((str(path), *complaint))
    return tuple(found)


def _complaint(path: Path) -> tuple[str, str] | None:
    from turbodiffusion.weights import header, sniff

    try:
        if sniff.container(path) == "safetensors":
            header.read_header(path)
        elif not zipfile.is_zipfile(path):
            fix = "Fetch it again, for example with `turbodiffusion download`."
            return f"{path} is cut off: its end is missing.", fix
    except TurboDiffusionError as error:
        return error.message, error.fix
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}).", "Check the disk and its permissions."
    return None
