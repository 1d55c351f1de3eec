"""What torch says about itself and the GPU, and whether products there have the right values."""

from __future__ import annotations

import json
import time
from typing import Any


def main() -> dict[str, Any]:
    start = time.perf_counter()
    import torch

    answer: dict[str, Any] = {
        "seconds": time.perf_counter() - start,
        "cuda": torch.version.cuda or "",
        "cudnn": 0,
        "gpus": 0,
        "architectures": [],
        "smoke": "",
        "shared_memory": 0,
    }
    if torch.version.cuda:
        answer["architectures"] = torch.cuda.get_arch_list()
        answer["cudnn"] = torch.backends.cudnn.version() or 0
        answer["gpus"] = torch.cuda.device_count()
    if answer["gpus"] and torch.cuda.is_available():
        answer["smoke"] = smoke(torch)
        properties = torch.cuda.get_device_properties(0)
        answer["shared_memory"] = getattr(properties, "shared_memory_per_block_optin", 0)
    return answer


def smoke(torch: Any) -> str:
    """``"ok"``, or how a product of halves or of 8-bit integers on the GPU goes wrong."""
    try:
        numbers = torch.arange(64 * 64).remainder(7).reshape(64, 64) - 3
        exact = numbers.double() @ numbers.double()
        half = numbers.half().cuda()
        if not torch.equal((half @ half).double().cpu(), exact):
            return "a product of fp16 matrices is wrong"
        small = numbers.to(torch.int8).cuda()
        if torch.cuda.get_device_capability() >= (7, 5) and not torch.equal(
            torch._int_mm(small, small).double().cpu(), exact
        ):
            return "a product of int8 matrices is wrong"
    except Exception as error:
        return str(error).strip().splitlines()[0][:300]
    return "ok"


if __name__ == "__main__":
    print(json.dumps(main()))
