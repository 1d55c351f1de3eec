"""Launch numbers of 8-bit attention, and which format its second product takes on which GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

PRODUCTS = ("fp16", "bf16", "fp8")
"""Formats of probabilities and values in the second product."""


def default_product(capability: tuple[int, int]) -> str:
    """``pv="auto"``: e4m3 from 8.9 on, where tensor cores have it; float16 before."""
    return "fp8" if capability >= (8, 9) else "fp16"


def integer_dtype(capability: tuple[int, int]) -> torch.dtype:
    """What quantised queries and keys are stored as.

    Triton multiplies int8 on the tensor cores of every GPU but 10.x, whose tcgen05 it does not
    reach that way. There bf16 carries the same integers: up to 256 it is exact, and so are float32
    sums of 128 products of them.
    """
    return torch.bfloat16 if capability[0] == 10 else torch.int8


@dataclass(frozen=True)
class CoreConfig:
    """Launch of the attention kernel, one query block a program.

    Args:
        num_warps: warps that share the rows of a query block.
        num_stages: key blocks in flight, each in its own shared memory.
        registers: limit a thread, 0 for none. Fewer let more programs share a multiprocessor, so
            that one's softmax runs beside another's products: 128 two of eight warps. Below 144
            ptxas makes Hopper's matrix instructions wait for each other (its note C7512).
        parts: pieces of the query block, which share the keys that are loaded.
        two_level: add each block's e4m3 product to the float32 sum in registers. Without it the
            tensor core adds, which on Hopper keeps fewer bits of the sum.
    """

    num_warps: int = 8
    num_stages: int = 2
    registers: int = 0
    two_level: bool = False
    parts: int = 1

    @classmethod
    def pick(
        cls, capability: tuple[int, int], block_q: int, block_k: int, width: int, pv: str
    ) -> CoreConfig:
        """Eight warps: with four, 128 rows need more registers than a thread has.

        On Hopper two programs must share a multiprocessor: 128 rows do with four warps in two
        parts, 64 with four. On an H100 64 × 128 took 5.6 ms so (14B, 480p, all of SageSLA) and
        7.9 ms with eight warps; on an H200 the attention alone takes 3.19 ms in 128 × 64 and 3.27
        in 64 × 128, the cut of the released kernels there.
        """
        if capability != (9, 0):
            return cls(8, 3 if capability in _LARGE_SHARED else 2)
        return cls(4, 3, parts=2) if block_q > 64 else cls(4, 2)

    @classmethod
    def candidates(cls, capability: tuple[int, int], block_k: int = 64) -> list[CoreConfig]:
        """Launches worth timing. Those of four warps spill with 128 query rows in one part."""
        if capability not in _LARGE_SHARED:
            return [cls(8, 2), cls(8, 1), cls(4, 2)]
        most = 4 if block_k <= 64 else 3  # of 16-bit values four stages do not fit
        found = [cls(warps, stages) for warps in (8, 4) for stages in range(2, most + 1)]
        if capability == (9, 0):
            found = [cls(4, stages, parts=2) for stages in (3, 2, most)] + found
            found += [cls(8, 3, 128), cls(8, 3, two_level=True)]
        return list(dict.fromkeys(found))

    def options(self) -> dict[str, Any]:
        """Launch options that only exist when they limit something."""
        return {"maxnreg": self.registers} if self.registers else {}


_LARGE_SHARED = ((8, 0), (9, 0), (10, 0))
"""GPUs whose multiprocessors have 160 KiB of shared memory or more; the others have 99."""


@dataclass(frozen=True)
class PrepareConfig:
    """Launch of the passes that smooth and quantise.

    Args:
        programs: how many an average multiprocessor gets. More hide memory latency better, load
            the linear state more often and leave more partial states to add.
        rows: of the pass over queries: how many have their linear branch computed at a time.
    """

    num_warps: int = 8
    num_stages: int = 2
    programs: int = 4
    rows: int = 32

    @classmethod
    def keys(cls, capability: tuple[int, int], block: int, state: bool) -> PrepareConfig:
        """The pass over keys and values, with or without the state of the linear branch."""
        # On 12.0 the addresses of a tile ahead would spill beside the state. On an H200 (14B, 480p)
        # blocks of 64 with the state took 0.87 ms with two stages and 0.75 with three.
        ahead = {9: 3, 12: 1}.get(capability[0], 2) if state else 2
        return cls(8 if state or block > 64 else 4, ahead)

    @classmethod
    def queries(cls, capability: tuple[int, int], block: int, linear: bool) -> PrepareConfig:
        """The pass over queries, with or without the linear branch.

        On an H200 (14B, 480p) four warps with 64 rows at a time took 0.46 ms, eight with 32 rows
        0.87. The matrix instruction of 10.0 takes no fewer rows than 64.
        """
        if not linear:
            return cls(programs=16)
        if capability == (9, 0):
            return cls(4, programs=8, rows=min(block, 64))
        if capability[0] == 10:
            return cls(programs=8, rows=min(block, 64))
        return cls(programs=8, rows=16 if capability[0] == 12 else min(block, 32))  # 32 spill there
