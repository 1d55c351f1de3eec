"""Ask the NVIDIA driver library for GPUs and capabilities, printed as one JSON line.

Run as a script in a child process, never imported for its work: ``cuInit`` can hang or crash.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

WSL = "/usr/lib/wsl/lib/libcuda.so.1"


def ask_library() -> dict[str, object]:
    """What the driver library says, whatever ``CUDA_VISIBLE_DEVICES`` hides from a run.

    ``{"gpus": [[name, major, minor, bytes], …], "cuda": 13000, "library": true, "init": 0,
    "error": ""}``; ``init`` is what cuInit returned, ``error`` why the library did not load.
    """
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    answer: dict[str, object] = {"gpus": [], "cuda": 0, "library": False, "init": None, "error": ""}
    cuda = None
    for name in ["nvcuda.dll"] if sys.platform == "win32" else ["libcuda.so.1", WSL]:
        try:
            cuda = ctypes.CDLL(name)
            break
        except OSError as error:
            answer["error"] = answer["error"] or str(error)
    if cuda is None:
        return answer
    number = ctypes.c_int()
    code = cuda.cuInit(0)
    answer.update(library=True, init=code, error="")
    if code:
        return answer
    cuda.cuDriverGetVersion(ctypes.byref(number))
    answer["cuda"] = number.value
    cuda.cuDeviceGetCount(ctypes.byref(number))
    answer["gpus"] = [_device(cuda, device) for device in range(number.value)]
    return answer


def _device(cuda: ctypes.CDLL, device: int) -> list[object]:
    """Name, capability and memory of one GPU."""
    number, memory = ctypes.c_int(), ctypes.c_size_t()
    text = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(text, 256, device)
    capability = []
    for attribute in (75, 76):  # compute capability, major and minor
        cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(number.value)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return [text.value.decode("utf-8", "replace"), *capability, memory.value]


if __name__ == "__main__":
    print(json.dumps(ask_library()))
