"""Block maps other than the top-k of SLA, as lists that every form of the operator takes.

A map is a pair ``(blocks, counts)``: indices int64 (B, N, query blocks, most kept), each row
ascending, and how many of each row count (B, N, query blocks). It goes to
``sparse_linear_attention(..., blocks=blocks, counts=counts)``. B and N are 1 where the map depends
on places only; ``expand`` them. Maps are built once a clip or once a step, not in kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError

BlockMap = tuple[Tensor, Tensor]


def from_mask(mask_BNQK: Tensor) -> BlockMap:
    """Lists of the True entries of a bool map (B, N, query blocks, key blocks).

    Past its count a row repeats block 0. Waits for the device, to know the longest row.
    """
    counts_BNQ = mask_BNQK.sum(-1)
    order = (~mask_BNQK).to(torch.uint8).sort(dim=-1, stable=True).indices
    blocks = order[..., : max(1, int(counts_BNQ.max()))]
    place = torch.arange(blocks.shape[-1], device=blocks.device)
    return torch.where(place < counts_BNQ[..., None], blocks, 0), counts_BNQ


def dense(query_blocks: int, key_blocks: int, device: torch.device | None = None) -> BlockMap:
    """Every block for every query block: for steps or layers that are kept exact."""
    blocks = torch.arange(key_blocks, device=device).expand(1, 1, query_blocks, -1)
    return blocks, torch.full((1, 1, query_blocks), key_blocks, device=device)


def sliding_window(
    grid: tuple[int, int, int],
    window: tuple[int, int, int],
    *,
    block_q: int,
    block_k: int,
    device: torch.device | None = None,
) -> BlockMap:
    """Blocks that hold a token near one of the query block, on the grid of tokens.

    Args:
        grid: latent frames, rows and columns of tokens, the first slowest.
        window: how far a key may lie from a query along each axis, in tokens; 0: the same place.

    A block is listed when the boxes around the tokens of both blocks come that close: never too
    few, and a little more than needed where a block wraps around the end of a row.
    """
    if min(grid) < 1 or min(window) < 0:
        raise UsageError(
            "ops-sla-window",
            f"A sliding window got the grid {grid} and the distances {window}; a grid has at "
            "least one token along each axis and a distance is at least 0.",
            "Give the token grid of the clip and distances in tokens.",
        )
    low_q, high_q = _boxes(grid, block_q, device)
    low_k, high_k = _boxes(grid, block_k, device)
    reach = torch.tensor(window, device=device)
    near_QKA = (low_k[None] <= high_q[:, None] + reach) & (low_q[:, None] <= high_k[None] + reach)
    return from_mask(near_QKA.all(-1)[None, None])


def cumulative_mass(scores_BNQK: Tensor, mass: float, width: int) -> BlockMap:
    """The fewest blocks whose softmax of ``scores / √width`` reaches ``mass``, at least one.

    ``scores_BNQK`` are the products of block means (``block_scores`` of a form) and ``width`` is
    the head width. Ties go to the lower index.
    """
    if not 0 < mass <= 1:
        raise UsageError(
            "ops-sla-mass",
            f"The mass to keep is {mass}; it lies in (0, 1].",
            "Use for example 0.9.",
        )
    p_BNQK = (scores_BNQK.float() * width**-0.5).softmax(-1)
    ranked, order = p_BNQK.sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(-1) - ranked  # mass of what ranks higher
    kept = before < mass
    kept[..., 0] = True
    return from_mask(torch.zeros_like(kept).scatter(-1, order, kept))


def _boxes(
    grid: tuple[int, int, int], block: int, device: torch.device | None
) -> tuple[Tensor, Tensor]:
    """Lowest and highest frame, row and column of each block's tokens, (blocks, 3)."""
    frames, rows, columns = grid
    length = frames * rows * columns
    first = torch.arange(0, length, block, device=device)
    last = (first + block - 1).clamp(max=length - 1)
    area = rows * columns
    low, high = [first // area], [last // area]
    # An axis is covered in whole where the block goes beyond one turn of it.
    for size, stride in ((rows, columns), (columns, 1)):
        a, b = first // stride, last // stride
        whole = a // size != b // size
        low.append(torch.where(whole, 0, a % size))
        high.append(torch.where(whole, size - 1, b % size))
    return torch.stack(low, -1), torch.stack(high, -1)
