"""What only Windows has: runtime libraries, long paths, the script policy. Not run elsewhere."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from turbodiffusion.doctor.facts import Windows

LIBRARIES = ("vcruntime140_1.dll", "vcruntime140.dll", "msvcp140.dll")


def read() -> Windows:
    """The facts of :class:`Windows`, each with its healthy value where it cannot be read."""
    system = Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32"
    runtime = min((file_version(system / name) for name in LIBRARIES), default=())
    beside = Path(sys.executable).parent
    stale = [
        str(beside / name)
        for name in LIBRARIES
        if (beside / name).is_file() and file_version(beside / name)[:2] < (14, 42)
    ]
    return Windows(
        runtime=runtime[:2],
        stale_runtime=stale[0] if stale else "",
        long_paths=_registry(r"SYSTEM\CurrentControlSet\Control\FileSystem", "LongPathsEnabled", 1)
        == 1,
        policy=str(
            _registry(
                r"SOFTWARE\Microsoft\PowerShell\1\ShellIds\Microsoft.PowerShell",
                "ExecutionPolicy",
                "RemoteSigned",
            )
        ),
    )


def file_version(path: Path) -> tuple[int, ...]:
    """The version resource of a library, () without one."""
    library = ctypes.windll.version  # type: ignore[attr-defined]
    size = library.GetFileVersionInfoSizeW(str(path), None)
    if not size:
        return ()
    data = ctypes.create_string_buffer(size)
    if not library.GetFileVersionInfoW(str(path), 0, size, data):
        return ()
    block, length = ctypes.c_void_p(), ctypes.c_uint()
    if not library.VerQueryValueW(data, "\\", ctypes.byref(block), ctypes.byref(length)):
        return ()
    high, low = ctypes.cast(block, ctypes.POINTER(ctypes.c_uint32 * 4)).contents[2:4]
    return (high >> 16, high & 0xFFFF, low >> 16, low & 0xFFFF)


def _registry(key: str, name: str, otherwise: object) -> object:
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as opened:  # type: ignore[attr-defined]
            return winreg.QueryValueEx(opened, name)[0]  # type: ignore[attr-defined]
    except OSError:
        return otherwise
