"""Launch numbers of the linears, by compute capability and shape."""

from __future__ import annotations

from dataclasses import dataclass, replace

Capability = tuple[int, int]

LONG = 2048
"""Rows from which a product fills a GPU with programs that stay on their multiprocessor."""


@dataclass(frozen=True)
class GemmConfig:
    """How the int8 product is cut.

    Args:
        block_m: rows of a program's tile; ``block_n`` its columns, at most 128.
        split_m: parts of the tile along M with a matrix product each; ``split_n`` along N.
        group_m: tile rows that run together, for the cache.
        descriptors: operands come by TMA (capability 9.0 and newer), otherwise by pointer.
        ordered: keep the parts in their order, see ``gemm_kernels.py``.
        half: multiply in bf16, exactly, where Triton has no fast int8 product.
        specialised: the kernel of ``hopper_kernels.py``, which has its own cut of 256 × 128.
    """

    block_m: int = 128
    block_n: int = 128
    split_m: int = 1
    split_n: int = 1
    num_warps: int = 8
    num_stages: int = 3
    group_m: int = 16
    descriptors: bool = False
    ordered: bool = False
    half: bool = False
    specialised: bool = False

    @classmethod
    def of(cls, capability: Capability, m: int) -> GemmConfig:
        """For ``m`` rows: 512 for text, 32,760 and more for video.

        On an H100 (M 32,760, N and K 13,824 and 5120, GELU epilogue) the specialised kernel runs
        at 901 TOP/s, the best plain one at 817, cuBLAS in bf16 at 733.
        """
        if capability == (9, 0) and m >= LONG:
            return specialised(group_m=8)
        return cls.plain(capability)

    @classmethod
    def plain(cls, capability: Capability) -> GemmConfig:
        """The same without warps of different tasks, for few rows and where they do not compile."""
        if capability[0] == 9:
            # Two programs share a multiprocessor, in 223 to 255 registers a thread: one promotes
            # its parts while the other multiplies.
            return cls(split_m=2, num_warps=4, descriptors=True, ordered=True)
        if capability[0] == 10:
            return cls(half=True)
        return cls(num_stages=4)

    @classmethod
    def interpreted(cls) -> GemmConfig:
        """For Triton's interpreter, which has no assembler: few and small tiles."""
        return cls(block_m=64, split_n=2)


def candidates(capability: Capability, m: int) -> list[GemmConfig]:
    """Launches worth timing; all compute the same, they differ in speed only."""
    plain = GemmConfig.plain(capability)
    if capability[0] != 9:
        return [plain, *(replace(plain, num_stages=n) for n in (3, 5) if capability == (8, 0))]
    return [
        plain,
        replace(plain, group_m=32),
        replace(plain, split_n=2),  # quarters overlap inside a program, operands are read twice
        replace(plain, num_warps=8, num_stages=4, split_m=1),
        specialised(group_m=8),
        specialised(),
    ]


def specialised(group_m: int = 16) -> GemmConfig:
    """Two consumers of 128 rows and a producer; capability 9.0 only."""
    return GemmConfig(
        block_m=256, num_warps=4, num_stages=4, group_m=group_m, descriptors=True, specialised=True
    )


@dataclass(frozen=True)
class Fp8Config:
    """How the e4m3 product is cut; names as in :class:`GemmConfig`."""

    block_m: int = 128
    block_n: int = 128
    num_warps: int = 8
    num_stages: int = 3
    group_m: int = 16
    descriptors: bool = False

    @classmethod
    def of(cls, capability: Capability, m: int) -> Fp8Config:
        """For ``m`` rows."""
        if capability[0] == 9:
            return cls(block_n=256, num_stages=4, descriptors=True)
        if capability[0] == 10:
            return cls(num_stages=4, descriptors=True)
        return cls()


def fp8_candidates(capability: Capability, m: int) -> list[Fp8Config]:
    """Launches of the e4m3 product worth timing."""
    best = Fp8Config.of(capability, m)
    if capability[0] != 9:
        return [best]
    small = replace(best, block_n=128, num_stages=3)
    return [best, replace(best, num_stages=3), small, replace(small, num_warps=4)]


@dataclass(frozen=True)
class QuantizeConfig:
    """Rows of a program of the quantisers, and elements of a row it reads at once for e4m3."""

    rows: int = 32
    num_warps: int = 4
    row_block: int = 2048
