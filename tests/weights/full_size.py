"""One task on a large checkpoint in a process of its own, which prints its peak memory.

    python -m tests.weights.full_size TASK FOLDER {bf16,int8} BLOCKS

With 30 blocks the network is that of the 1.3B card; fewer blocks keep all its widths.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from turbodiffusion.models.cards import CARDS, ModelCard

NAME = "TurboWan2.1-T2V-1.3B-480P"


def the_card(blocks: int) -> ModelCard:
    card = CARDS[NAME]
    return card if blocks == 30 else replace(card, dit=replace(card.dit, num_layers=blocks))


def write(folder: Path, quantized: bool, card: ModelCard) -> dict[str, object]:
    from turbodiffusion.weights.synthetic import write_synthetic

    path = write_synthetic(card, folder / f"{NAME}.pth", quantized)
    return {"bytes": path.stat().st_size}


def convert(folder: Path, quantized: bool, card: ModelCard) -> dict[str, object]:
    from turbodiffusion.weights.convert import convert

    convert(folder / f"{NAME}.pth", folder / "there.safetensors")
    found = convert(folder / "there.safetensors", folder / "back.pth")
    return {"kind": found.kind, "torch": "torch" in sys.modules}


def compare(folder: Path, quantized: bool, card: ModelCard) -> dict[str, object]:
    """Every tensor of the three files, byte for byte, a few megabytes at a time."""
    from turbodiffusion.weights.convert import read_range
    from turbodiffusion.weights.header import read_header

    first, *others = (
        read_header(folder / name).tensors
        for name in (f"{NAME}.pth", "there.safetensors", "back.pth")
    )
    equal = all(list(other) == list(first) for other in others)
    for other in others:
        for name, info in first.items():
            pairs = zip(read_range(info), read_range(other[name]), strict=True)
            equal = equal and info.dtype == other[name].dtype and all(a == b for a, b in pairs)
    return {"equal": equal}


def load(folder: Path, quantized: bool, card: ModelCard) -> dict[str, object]:
    import torch

    from turbodiffusion.weights.load import load_dit

    results: dict[str, object] = {"before": peak()}
    dits = [
        load_dit(folder / name, card) for name in (f"{NAME}.pth", "there.safetensors", "back.pth")
    ]
    results["loaded"] = peak()
    latent = torch.randn(1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    text = torch.randn(1, 512, 4096, generator=torch.Generator().manual_seed(1))
    time_B1 = torch.full((1, 1), 988.0, dtype=torch.bfloat16)
    with torch.no_grad():
        out = dits[1](latent.bfloat16(), time_B1, text.bfloat16())
    results["finite"] = bool(out.isfinite().all()) and out.std().item() > 0
    results["tensors"] = len(dits[1].state_dict())
    results["quantized"] = dits[1].quantized
    return results


def peak() -> float:
    """Largest resident size of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would start from the size of the process that started this one.
        line = next(n for n in status.read_text().splitlines() if n.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1e6 if sys.platform == "darwin" else size / 1e3


if __name__ == "__main__":
    task, folder, layout, blocks = sys.argv[1:]
    start = time.perf_counter()
    action = {"write": write, "convert": convert, "compare": compare, "load": load}[task]
    results = action(Path(folder), layout == "int8", the_card(int(blocks)))
    print(json.dumps({**results, "peak": peak(), "seconds": time.perf_counter() - start}))
