"""Launch numbers of the attention kernels, dense and sparse."""

from __future__ import annotations

from dataclasses import dataclass, replace

Capability = tuple[int, int]

SMALL_MEMORY = ((8, 6), (8, 9), (12, 0), (12, 1))
"""Capabilities whose blocks have 99 KiB of shared memory instead of 163 or 227."""


@dataclass(frozen=True)
class AttentionConfig:
    """How one attention kernel is launched.

    Args:
        tile_q: queries of a product; ``tile_k`` keys. Powers of two, at least 16.
        num_stages: loads of keys and values under way, in tiles.
        peel: visit the last tile of a list apart, so that no other needs a mask.
        parts: pieces of the queries with a product each, which share keys and values.
    """

    tile_q: int
    tile_k: int
    num_warps: int
    num_stages: int
    peel: bool = False
    parts: int = 1

    @classmethod
    def forward(cls, capability: Capability, width: int, itemsize: int) -> AttentionConfig:
        """128 queries to a program: two warp groups, each with 64 rows, share every key tile."""
        if itemsize == 4:  # three products in TF32 stand for one: less fits
            return cls(64, 32, 4, 2 if width == 128 else 3)
        if capability >= (12, 0):  # 64 keys spill there once the linear branch is added
            return cls(128, 32, 8, 3)
        if capability in SMALL_MEMORY:
            return cls(128, 64, 8, 2)
        if capability < (9, 0):
            return cls(128, 64, 8, 3)
        return cls(128, 64, 8, 3, peel=True)

    @classmethod
    def query_backward(cls, capability: Capability, width: int, itemsize: int) -> AttentionConfig:
        """For dq: three products a tile, one accumulator."""
        if itemsize == 4:
            return cls(32, 32, 4, 1)
        return cls(64, 64, 4, 2) if capability in ((9, 0), (10, 0)) else cls(64, 32, 4, 2)

    @classmethod
    def key_backward(cls, capability: Capability, width: int, itemsize: int) -> AttentionConfig:
        """For dk and dv: four products a tile, two accumulators, hence fewer rows a warp."""
        if itemsize == 4:
            return cls(32, 32, 4, 1)
        return cls(64, 64, 8, 2)

    def fit(self, block_q: int, block_k: int, pairs: bool = False) -> AttentionConfig:
        """No larger than a block of queries and one of keys, or exactly two with ``pairs``."""
        tile_q = min(self.tile_q, max(16, ceil_power(block_q)))
        pair = pairs and 2 * block_k == self.tile_k and block_k >= 16
        tile_k = self.tile_k if pair else min(self.tile_k, max(16, ceil_power(block_k)))
        warps = self.num_warps if tile_q * tile_k >= 64 * 64 else min(self.num_warps, 4)
        parts = self.parts if tile_q == self.tile_q else 1
        return replace(self, tile_q=tile_q, tile_k=tile_k, num_warps=warps, parts=parts)


def ceil_power(n: int) -> int:
    """The power of two that is not below ``n``."""
    return 1 << (n - 1).bit_length()


def candidates(capability: Capability, width: int = 128) -> list[AttentionConfig]:
    """Forward launches worth timing in half precision; they differ in speed only."""
    shapes = [
        (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 8, 4), (128, 64, 4, 2), (128, 64, 4, 3),
        (64, 64, 4, 2), (64, 64, 4, 3), (128, 128, 8, 2), (64, 128, 4, 2),
    ]  # fmt: skip
    limit = 101376 if capability in SMALL_MEMORY else 166912 if capability < (9, 0) else 232448
    hopper = capability == (9, 0)
    found = [
        AttentionConfig(*shape, peel=hopper or capability == (10, 0))
        for shape in shapes
        if 2 * width * (shape[0] + 2 * shape[1] * shape[3]) <= limit
    ]
    # Without a tile apart, whose memory is its own, two programs fit a multiprocessor.
    return found + [AttentionConfig(128, 64, 4, 2, parts=2)] * hopper
