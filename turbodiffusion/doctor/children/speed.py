"""Short ceilings of this machine, by the same measurement as ``turbodiffusion bench``.

``speed.py ROOT``. For every device: a copy in its memory, products in bf16, int8 and fp8; for a GPU
also the copy from pinned host memory and, while it is warm, its clocks and why they are lower.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

SECONDS = 0.4  # for each ceiling
PINNED = 256 << 20
STATE = "clocks.sm,clocks.max.sm,temperature.gpu,power.draw,pcie.link.gen.current,"
STATE += "pcie.link.width.current,pcie.link.width.max"


def main(root: str) -> dict[str, Any]:
    sys.path.insert(0, root)
    import torch

    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    rows: list[dict[str, Any]] = []
    for device in devices or [torch.device("cpu")]:
        try:
            rows += measure(torch, device)
        except Exception as error:
            said = str(error).strip().splitlines() or ["no message"]
            rows.append({"device": str(device), "name": "ceilings", "error": said[0][:200]})
    lines = [f"  {row['device']:<7} {row.get('text') or 'failed: ' + row['error']}" for row in rows]
    return {"title": f"speed: {SECONDS} s for each ceiling", "rows": rows, "lines": lines}


def measure(torch: Any, device: Any) -> list[dict[str, Any]]:
    """Rows of one device; ``value`` is in operations or bytes a second."""
    from turbodiffusion.bench import ceilings, timing

    found = ceilings.measure(device, timing.clock(device), SECONDS)
    rows = [{"name": one.name, "value": one.value, "text": one.text} for one in found.each]
    if device.type == "cuda":
        rate = upload(torch, device)
        rows.append({"name": "upload", "value": rate, "text": f"upload: {rate / 1e9:.3g} GB/s"})
        if state := smi(device.index):
            rows.append({"name": "state", "value": None, "text": f"state: {state}"})
    return [{"device": str(device), **row, "error": ""} for row in rows]


def upload(torch: Any, device: Any) -> float:
    """Bytes a second from pinned host memory, the median of five."""
    source = torch.empty(PINNED, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device)
    times = []
    for _ in range(6):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return PINNED / sorted(times[1:])[2]


def smi(index: int) -> str:
    """Clock, temperature, power and link of a GPU in the driver's order, or ""."""
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={STATE}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    values = [word.strip() for word in done.stdout.split(",")]
    if done.returncode or len(values) != 7:
        return ""
    clock, most, heat, power, generation, width, widest = values
    return f"{clock} of {most}, {heat} °C, {power}, PCIe {generation} x{width} of x{widest}"


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
