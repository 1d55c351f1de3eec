"""Ask the NVIDIA driver library for GPUs and capabilities, printed as one JSON line.

Run as a script in a child process, never imported for its work: ``cuInit`` can hang or crash.
"""

from __future__ import annotations

import ctypes
import json
import sys


def ask_library() -> dict[str, object]:
    """``{"gpus": [[name, major, minor], …], "cuda": 13000}``; no GPU without the library."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(name)
    except OSError:
        return {"gpus": [], "cuda": 0}
    number = ctypes.c_int()
    if cuda.cuInit(0):
        return {"gpus": [], "cuda": 0}
    cuda.cuDriverGetVersion(ctypes.byref(number))
    version = number.value
    cuda.cuDeviceGetCount(ctypes.byref(number))
    gpus = []
    for device in range(number.value):
        text = ctypes.create_string_buffer(256)
        cuda.cuDeviceGetName(text, 256, device)
        capability = []
        for attribute in (75, 76):  # compute capability, major and minor
            cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
            capability.append(number.value)
        gpus.append([text.value.decode("utf-8", "replace"), *capability])
    return {"gpus": gpus, "cuda": version}


if __name__ == "__main__":
    print(json.dumps(ask_library()))
