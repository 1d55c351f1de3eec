"""What is read on Windows only, against stand-ins for its libraries and registry."""

from __future__ import annotations

import ctypes
import sys
import types

import pytest

from turbodiffusion.doctor.readings import storage, win32

VERSIONS = {"vcruntime140_1.dll": (14, 44), "vcruntime140.dll": (14, 42), "msvcp140.dll": (14, 44)}


class VersionLibrary:
    """``version.dll``: a block of words for each file; the third holds major and minor."""

    def __init__(self, versions):
        self.versions = versions
        self.block = None

    def _find(self, path):
        name = path.replace("\\", "/").rpartition("/")[2]
        return self.versions.get(name) if "System32" in path else self.versions.get(f"own/{name}")

    def GetFileVersionInfoSizeW(self, path, _):
        return 64 if self._find(path) else 0

    def GetFileVersionInfoW(self, path, _, size, data):
        major, minor = self._find(path)
        self.block = (ctypes.c_uint32 * 4)(
            0xFEEF04BD, 0x10000, major << 16 | minor, 35211 << 16 | 3
        )
        return 1

    def VerQueryValueW(self, data, name, block, length):
        block._obj.value = ctypes.addressof(self.block)
        return 1


class Key:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def registry(values):
    def open_key(root, path):
        return Key()

    def query(key, name):
        if name not in values:
            raise FileNotFoundError(name)
        return values[name], 4

    return types.SimpleNamespace(HKEY_LOCAL_MACHINE=0, OpenKey=open_key, QueryValueEx=query)


@pytest.fixture
def windows(monkeypatch, tmp_path):
    def make(versions=VERSIONS, values=None):
        libraries = types.SimpleNamespace(version=VersionLibrary(versions))
        monkeypatch.setattr(ctypes, "windll", libraries, raising=False)
        monkeypatch.setitem(sys.modules, "winreg", registry(values or {}))
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python.exe"))
        return win32.read()

    return make


def test_the_oldest_runtime_library_counts(windows):
    found = windows()
    assert found.runtime == (14, 42) and found.stale_runtime == ""


def test_a_missing_library_means_no_runtime(windows):
    assert windows({"vcruntime140.dll": (14, 44)}).runtime == ()


def test_an_old_copy_beside_python(windows, tmp_path):
    (tmp_path / "msvcp140.dll").touch()
    found = windows({**VERSIONS, "own/msvcp140.dll": (14, 29)})
    assert found.stale_runtime == str(tmp_path / "msvcp140.dll")


@pytest.mark.parametrize(
    ("value", "on"), [({"LongPathsEnabled": 1}, True), ({"LongPathsEnabled": 0}, False)]
)
def test_long_paths(windows, value, on):
    assert windows(values=value).long_paths is on


def test_script_policy(windows):
    assert windows(values={"ExecutionPolicy": "Restricted"}).policy == "Restricted"
    assert windows().policy == "RemoteSigned"


def test_memory(monkeypatch):
    gib = 2**30

    class Kernel:
        def GlobalMemoryStatusEx(self, status):
            one = status._obj
            assert one.length == ctypes.sizeof(one) == 64
            one.total, one.free, one.page = 32 * gib, 20 * gib, 40 * gib
            return 1

    monkeypatch.setattr(ctypes, "windll", types.SimpleNamespace(kernel32=Kernel()), raising=False)
    found = storage._windows_memory()
    assert (found.total, found.available, found.swap) == (32 * gib, 20 * gib, 8 * gib)
