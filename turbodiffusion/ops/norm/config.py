"""Launch numbers of the norm kernels.

A row of D elements is cut into ``count`` chunks of ``chunk``, a power of two: 1536 = 3·512, 5120 =
5·1024. On an H200 there are some twenty instructions an element before arithmetic takes longer than
memory. By the assembly for capability 9.0, LayerNorm, modulation and quantisation use 14.3 at 1536
and 16.9 at 5120; one tensor filled up to the next power of two uses 14.6 and 19.2, not a third
more, because the compiler drops what lies wholly beyond the row. It has fewer barriers, though, so
it is a candidate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MOST_CHUNKS = 8


@dataclass(frozen=True)
class RowConfig:
    """How a kernel walks over rows.

    Args:
        chunk: elements of a row handled as one tensor; ``count`` of them make up the row, or one
            of them contains it.
        rows: rows of a program, which share one load of the weights.
    """

    chunk: int
    count: int
    rows: int
    num_warps: int

    @classmethod
    def forward(cls, width: int, itemsize: int) -> RowConfig:
        """For reading a row once and writing it once.

        A row of Wan 1.3B belongs to one warp, which needs no barrier: 48 elements a thread in 80
        to 90 registers leave room for 20 rows a multiprocessor, 60 kB on their way. A row of 14B
        would fill the registers of a warp and is shared by four.
        """
        chunk, count = chunks(width)
        if chunk * count <= 256:
            return cls(chunk, count, 16, 4)
        return cls(chunk, count, 1, min(8, _warps(chunk * count * itemsize, 4096)))

    @classmethod
    def quantising(cls, width: int, itemsize: int) -> RowConfig:
        """For writing integers and scales: more arithmetic, so two warps share a row of 1.3B.

        On an H200 that takes 0.055 ms for 32,760 rows, one warp 0.070.
        """
        c = cls.forward(width, itemsize)
        if c.rows > 1:
            return c
        return replace(c, num_warps=max(c.num_warps, min(4, _warps(width, 1280))))

    @classmethod
    def backward(cls, width: int, itemsize: int) -> RowConfig:
        """For two inputs and two running sums a column: fewer elements a thread."""
        chunk, count = chunks(width)
        rows = 4 if chunk * count <= 256 else 1
        return cls(chunk, count, rows, max(4, min(16, _warps(chunk * count * itemsize, 1536))))


def chunks(width: int) -> tuple[int, int]:
    """(chunk, count): exact where few enough chunks do, else one chunk with idle lanes.

    Of a width that is a multiple of 128 the chunk is one too.
    """
    chunk = width & -width
    if width // chunk <= MOST_CHUNKS:
        return chunk, width // chunk
    return 1 << (width - 1).bit_length(), 1


def candidates(capability: int, width: int, itemsize: int = 2) -> list[RowConfig]:
    """Forward launches worth timing; all compute the same, they differ in speed only.

    Smaller chunks give each row to fewer warps, so that fewer of them, or none, wait for others.
    """
    base = RowConfig.forward(width, itemsize)
    halved = replace(base, chunk=base.chunk // 2, count=base.count * 2)
    filled = replace(base, chunk=1 << (width - 1).bit_length(), count=1)
    found = [
        replace(cut, rows=rows, num_warps=warps)
        for cut, several in (
            (base, (1, 2, 4)),
            (halved, (2, 4) if base.chunk > 256 else ()),
            (filled, (1,)),
        )
        for rows in several
        for warps in (1, 2, 4, 8)
        if 512 <= rows * width // warps <= 3072
    ]
    return list(dict.fromkeys(found))


def _warps(row_bytes: int, most: int) -> int:
    """Warps, a power of two, such that each holds at most ``most`` bytes of a row."""
    return 1 << max(0, (-(-row_bytes // most) - 1).bit_length())
