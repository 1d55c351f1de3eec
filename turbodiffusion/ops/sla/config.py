"""Launch numbers of the kernels that only SLA has: block map and linear branch.

Those of the sparse branch are shared with dense attention: ``ops/attention/config.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from turbodiffusion.ops.attention.config import Capability, ceil_power

WIDEST_ROW = 8192
"""Key blocks that the selection kernel holds in one program: half a million tokens of 64."""


@dataclass(frozen=True)
class TokenConfig:
    """A kernel that walks over tokens with whole heads.

    Args:
        tile: tokens of a product.
        programs: how many programs share the tokens of all heads; 0: one for every tile.
    """

    tile: int
    num_warps: int
    num_stages: int = 2
    programs: int = 0

    @classmethod
    def pool(cls, block: int) -> TokenConfig:
        return cls(min(32, max(16, ceil_power(block))), 4, 2)

    @classmethod
    def token_product(cls, width: int, itemsize: int) -> TokenConfig:
        """The (D, D) sum stays in registers: eight warps. Two programs a multiprocessor.

        32 tokens and not 64: 125 registers a thread, with which two fit.
        """
        if itemsize == 4:
            return cls(16, 8, 1, 264)
        return cls(32, 8, 3, 264) if width > 64 else cls(64, 4, 2, 264)

    @classmethod
    def linear_backward(cls, capability: Capability, width: int, itemsize: int) -> TokenConfig:
        return cls(16, 4, 1) if itemsize == 4 else cls(32, 4, 1)


@dataclass(frozen=True)
class SelectConfig:
    """The selection kernel: one program a row of ``width`` lanes, a power of two."""

    width: int
    num_warps: int

    @classmethod
    def row(cls, key_blocks: int) -> SelectConfig:
        """Sixteen scores a thread: enough work between two sums over the row."""
        width = max(32, ceil_power(key_blocks))
        return cls(width, min(8, max(1, width // 512)))
