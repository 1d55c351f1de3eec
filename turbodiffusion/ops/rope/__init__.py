"""Rotary position embedding over time, height and width.

A head of width D is cut into D/2 interleaved pairs (z₂ⱼ, z₂ⱼ₊₁). The first pairs rotate with the
latent frame of a token, the next with its row, the last with its column. The same table serves
all heads, layers and steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.ops import backend

BASE = 10000.0


def inverse_frequencies(width: int, device: torch.device | str | None = None) -> Tensor:
    """``BASE^(-2j/width)`` for j = 0 … width/2 - 1, float32 throughout as in training."""
    return 1.0 / BASE ** (torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)


def rope_table(
    grid: tuple[int, int, int],
    split: tuple[int, int, int],
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every token's angles.

    Args:
        grid: tokens along (time, height, width); L is their product, width running fastest.
        split: even widths of the head that rotate with each axis; they sum to the head width D.

    Returns:
        ``(cos, sin)``, each float32 (L, D/2).
    """
    t, h, w = grid
    axes = []
    for axis, (length, width) in enumerate(zip(grid, split, strict=True)):
        position = torch.arange(length, dtype=torch.float32, device=device)
        angle = torch.outer(position, inverse_frequencies(width, device))
        shape = [1, 1, 1, width // 2]
        shape[axis] = length
        axes.append(angle.view(shape).expand(t, h, w, width // 2))
    angle_LP = torch.cat(axes, dim=-1).flatten(0, 2)
    return angle_LP.cos(), angle_LP.sin()


def apply_rope(x_BLND: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs of every head by the angles of ``table``, in float32, rounded once.

    Args:
        x_BLND: queries or keys, any float dtype.
        table: from :func:`rope_table`, for the same L and D.

    Returns:
        (B, L, N, D) in the dtype of ``x_BLND``.

    Raises:
        UsageError: the table is of another length or width.
    """
    cos_LP, sin_LP = _checked(table, x_BLND.shape[1], x_BLND.shape[3])
    return backend.form("rope", x_BLND.device).apply_rope(x_BLND, cos_LP, sin_LP)


def rms_norm_rope(
    x_BLD: Tensor, weight: Tensor, table: tuple[Tensor, Tensor], eps: float, num_heads: int
) -> Tensor:
    """:func:`turbodiffusion.ops.norm.rms_norm` of whole tokens, then :func:`apply_rope` per head.

    The preparation of queries and keys. Where kernels do both in one pass, the normalised value is
    not rounded before it is rotated; elsewhere it is, as in the released path.

    Args:
        x_BLD: projected tokens, any float dtype; D spans all heads.
        weight: (D,), bf16 or float32.
        table: from :func:`rope_table`, for the same L and the width of a head.
        num_heads: N; it divides D.

    Returns:
        (B, L, N, D/N) in the dtype of ``x_BLD``.

    Raises:
        UsageError: D is no multiple of ``num_heads``, or the table is of another length or width.
    """
    width = x_BLD.shape[-1]
    if num_heads < 1 or width % num_heads:
        raise UsageError(
            "ops-rope-heads",
            f"Tokens of width {width} cannot be cut into {num_heads} heads.",
            "Give a number of heads that divides the width.",
        )
    cos_LP, sin_LP = _checked(table, x_BLD.shape[1], width // num_heads)
    form = backend.form("rope", x_BLD.device)
    return form.rms_norm_rope(x_BLD, weight, cos_LP, sin_LP, eps, num_heads)


def _checked(table: tuple[Tensor, Tensor], length: int, width: int) -> tuple[Tensor, Tensor]:
    cos_LP, sin_LP = table
    wanted = length, width // 2
    if tuple(cos_LP.shape) != wanted or sin_LP.shape != cos_LP.shape:
        raise UsageError(
            "ops-rope-shape",
            f"The rotary table is {tuple(cos_LP.shape)}, but {length} tokens with heads of {width} "
            f"need {wanted}.",
            "Build it with rope_table for this grid and this head width.",
        )
    return cos_LP, sin_LP
