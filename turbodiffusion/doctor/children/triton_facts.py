"""Import Triton; with the word ``gpu`` also compile a small kernel and compare what it adds.

The kernel goes into a temporary cache, so that its compiler and launcher are really tried.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main(gpu: bool) -> dict[str, Any]:
    import triton

    answer: dict[str, Any] = {
        "version": triton.__version__,
        "assemblers": assemblers(Path(triton.__file__).parent),
        "smoke": "",
        "seconds": 0.0,
    }
    if not gpu:
        return answer
    import torch

    if torch.version.cuda and torch.cuda.is_available():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            os.environ["TRITON_CACHE_DIR"] = folder
            start = time.perf_counter()
            answer["smoke"] = smoke(torch)
            answer["seconds"] = time.perf_counter() - start
    return answer


def assemblers(folder: Path) -> list[str]:
    """Releases of the ptxas programs inside the package."""
    found = set()
    for program in sorted(folder.glob("backends/nvidia/bin/ptxas*")):
        try:
            done = subprocess.run(
                [str(program), "--version"], capture_output=True, text=True, timeout=5
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if release := re.search(r"V(\d+\.\d+\.\d+)", done.stdout):
            found.add(release[1])
    return sorted(found)


def smoke(torch: Any) -> str:
    """``"ok"``, or the first line of what stopped the kernel."""
    from add_kernel import add  # beside this file: Triton reads kernels from their source

    try:
        x = torch.arange(1000, dtype=torch.float32, device="cuda")
        out = torch.full_like(x, float("nan"))
        add[(8,)](x, x * 2, out, 1000, SIZE=128)
        return "ok" if torch.equal(out.cpu(), 3 * x.cpu()) else "a sum is wrong"
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    print(json.dumps(main("gpu" in sys.argv)))
