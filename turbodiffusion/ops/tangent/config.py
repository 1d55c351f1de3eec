"""Launch numbers of the attention tangent."""

from __future__ import annotations

from dataclasses import dataclass

Capability = tuple[int, int]


@dataclass(frozen=True)
class TangentConfig:
    """``tile_q`` queries keep two accumulators while ``tile_k`` keys pass, with their tangents."""

    tile_q: int
    tile_k: int
    num_warps: int
    num_stages: int

    @classmethod
    def choose(
        cls, capability: Capability, width: int, itemsize: int, tf32: bool = False
    ) -> TangentConfig:
        """Twice the registers and twice the loads of plain attention: smaller tiles.

        Float32 splits every operand in two for its three TF32 products. No larger tile fits the
        registers at width 64; at width 128, which no float32 network here has, none does. One TF32
        product (``tf32``) needs no split.
        """
        if itemsize == 4 and tf32 and width <= 64:
            return cls(64, 32, 4, 2) if capability in ((9, 0), (10, 0)) else cls(64, 16, 4, 1)
        if itemsize == 4:
            return cls(16, 16, 4, 1)
        if capability in ((9, 0), (10, 0)):  # a warp group multiplies 64 rows
            return cls(128, 32, 8, 2)
        if capability >= (12, 0) and width == 128:  # 32 keys spill there without their tangents
            return cls(64, 16, 8, 2)
        return cls(64, 32, 8 if width == 128 else 4, 2)
