"""Common NVIDIA GPUs by their datasheets: what a plan needs to know of a GPU that is not here.

Rates are dense (no sparsity), bf16 with float32 accumulation, at boost clock; vendors' "AI TOPS"
are sparse fp4 or fp8 and were divided accordingly. Only GPUs that the kernels run on are listed
(capability 8.0 and newer); any other can be planned for by its memory alone.

How far the figures were checked:

- GeForce: bf16 is 4 operations per CUDA core and boost clock, int8 four times that. Found in
  published tables, as rates or as cores, clock and bandwidth: RTX 5060 Ti, 4090, 4080, 4080 SUPER,
  4070 Ti SUPER, 4070 SUPER, 4060 Ti, 3090 Ti, 3090, 3080, 3060. Not found, so unverified: the clock
  of the RTX 5090, and RTX 5080, 5070 Ti, 5070, 4070 Ti, 4070, 4060.
- Found in tables that quote the vendor: RTX PRO 6000 Blackwell, L40S, A100, H100, H100 PCIe, H200,
  H20, B200 (in HGX), rates of L4 and A10, int8 of RTX A6000, bf16 of H100 NVL.
- Unverified: RTX 6000 Ada, the rest of H100 NVL and RTX A6000, H200 NVL, L4's bandwidth, all links
  (from the PCIe generation), and the rates of GB10: the announced 1 PFLOP of sparse fp4 by 8 and 4.
- Memory is the nominal size, but for L4, A10 and L40S, whose ECC takes a sixteenth of it (found in
  reports of nvidia-smi).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        memory: bytes. bf16, int8: dense operations a second. bandwidth: bytes of memory a second.
        link: bytes a second from the host (PCIe x16 or x8, one direction), before overhead.
        unified: it shares its memory with the host, and nothing is gained by moving weights.
    """

    name: str
    memory: int
    bf16: float
    int8: float
    bandwidth: float
    link: float
    unified: bool = False


# GiB, bf16 TFLOPS, int8 TOPS, memory GB/s, host link GB/s
_TABLE: tuple[tuple[str, float, float, float, float, float], ...] = (
    ("RTX 5090", 32, 209.5, 838.0, 1792, 64),
    ("RTX 5080", 16, 112.6, 450.2, 960, 64),
    ("RTX 5070 Ti", 16, 87.9, 351.5, 896, 64),
    ("RTX 5070", 12, 61.7, 246.9, 672, 64),
    ("RTX 5060 Ti", 16, 47.4, 189.8, 448, 32),
    ("RTX 4090", 24, 165.2, 660.6, 1008, 32),
    ("RTX 4080 SUPER", 16, 104.4, 417.8, 736, 32),
    ("RTX 4080", 16, 97.5, 389.9, 717, 32),
    ("RTX 4070 Ti SUPER", 16, 88.2, 353.0, 672, 32),
    ("RTX 4070 Ti", 12, 80.2, 320.7, 504, 32),
    ("RTX 4070 SUPER", 12, 71.0, 284.0, 504, 32),
    ("RTX 4070", 12, 58.3, 233.2, 504, 32),
    ("RTX 4060 Ti", 16, 44.1, 176.5, 288, 16),
    ("RTX 4060", 8, 30.2, 120.9, 272, 16),
    ("RTX 3090 Ti", 24, 80.0, 320.0, 1008, 32),
    ("RTX 3090", 24, 71.2, 284.7, 936, 32),
    ("RTX 3080", 10, 59.5, 238.0, 760, 32),
    ("RTX 3060", 12, 25.5, 101.9, 360, 32),
    ("RTX PRO 6000 Blackwell", 96, 503.8, 1007.6, 1792, 64),
    ("RTX 6000 Ada", 48, 364.2, 728.5, 960, 32),
    ("RTX A6000", 48, 154.8, 309.7, 768, 32),
    ("L40S", 45, 362.0, 733.0, 864, 32),
    ("L4", 22.5, 121.0, 242.0, 300, 32),
    ("A10", 22.5, 125.0, 250.0, 600, 32),
    ("A100 80GB", 80, 312.0, 624.0, 2039, 32),
    ("A100 40GB", 40, 312.0, 624.0, 1555, 32),
    ("H100 PCIe", 80, 756.0, 1513.0, 2000, 64),
    ("H100", 80, 989.0, 1979.0, 3350, 64),
    ("H100 NVL", 94, 835.0, 1671.0, 3900, 64),
    ("H200", 141, 989.0, 1979.0, 4800, 64),
    ("H200 NVL", 141, 835.0, 1671.0, 4800, 64),
    ("H20", 96, 148.0, 296.0, 4000, 64),
    ("B200", 180, 2250.0, 4500.0, 7700, 64),
)
GPUS: dict[str, Gpu] = {
    name: Gpu(name, int(memory * GIB), bf16 * 1e12, int8 * 1e12, bandwidth * 1e9, link * 1e9)
    for name, memory, bf16, int8, bandwidth, link in _TABLE
} | {"GB10": Gpu("GB10", 128 * GIB, 125e12, 250e12, 273e9, 273e9, unified=True)}


def gpu(name: str) -> Gpu | None:
    """The table's entry for a name as people or drivers write it, or None.

    ``NVIDIA GeForce RTX 5090``, ``rtx5090`` and ``5090`` are one GPU. A laptop part has another
    chip than the desktop part of its name, so it is not found. A size in the name that the table
    does not have replaces the table's: ``RTX 4060 Ti 8GB``.
    """
    chip, memory = _parts(name)
    if re.search("laptop|mobile|maxq", chip):
        return None
    for wanted in (chip, chip.removesuffix("pcie")):
        fitting = [one for key, one in GPUS.items() if _parts(key)[0] == wanted]
        exact = [one for one in fitting if not memory or _alike(one.memory / GIB, memory)]
        if exact:
            return exact[0]
        if fitting:
            return replace(fitting[0], memory=memory * GIB)
    return None


def _alike(gib: float, nominal: int) -> bool:
    """Whether memory is what a name calls it; ECC may have taken a sixteenth."""
    return 0.93 * nominal < gib <= nominal


def _parts(name: str) -> tuple[str, int]:
    """Chip and memory in GiB (0 if the name does not tell), without the vendor's decoration."""
    text = name.lower()
    found = re.search(r"(\d+)\s*gb\b", text)
    memory = int(found[1]) if found else 0
    noise = r"\d+\s*gb\b|nvidia|geforce|rtx|tesla|sxm\d?|hbm\de?|generation|workstation|edition"
    return re.sub(r"[^a-z0-9]", "", re.sub(noise, "", text)), memory
