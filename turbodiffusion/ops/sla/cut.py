"""How SLA cuts tokens into blocks, for the forms in PyTorch.

Letters: H the B·N heads, R query blocks, X queries of a block, J the key blocks kept by a query
block and S their keys, K key blocks, F elements of a key block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """The blocks of a sequence, and the key blocks that each query block keeps."""

    blocks_HRJ: Tensor
    hidden_HRS: Tensor | None
    """True where a listed key may not be seen; None: all may."""
    block_q: int
    block_k: int
    length: int

    @classmethod
    def of(
        cls, blocks: Tensor, counts: Tensor | None, block_q: int, block_k: int, length: int
    ) -> Cut:
        """From the lists of the operator, (B, N, query blocks, kept) and (B, N, query blocks)."""
        device = blocks.device
        blocks_HRJ, hidden_HRJS, beyond_HRJ1 = blocks.flatten(0, 1), None, None
        if counts is not None:  # what lies past a count is no index; block 0 stands for it
            place_J = torch.arange(blocks.shape[-1], device=device)
            beyond_HRJ1 = (place_J >= counts.flatten(0, 1)[..., None])[..., None]
            blocks_HRJ = blocks_HRJ.masked_fill(beyond_HRJ1.squeeze(-1), 0)
        if counts is not None or length % block_k:
            place_S = torch.arange(block_k, device=device)
            hidden_HRJS = blocks_HRJ[..., None] * block_k + place_S >= length
        if hidden_HRJS is not None and beyond_HRJ1 is not None:
            hidden_HRJS |= beyond_HRJ1
        hidden_HRS = None if hidden_HRJS is None else hidden_HRJS.flatten(-2)
        return cls(blocks_HRJ, hidden_HRS, block_q, block_k, length)

    def step(self, width: int, elements: int, threads: int) -> int:
        """Query blocks of a slice: ``elements`` of copied keys, or four slices for each thread."""
        heads, count, kept = self.blocks_HRJ.shape
        room = elements // (kept * self.block_k * width)
        return max(1, min(count, room, -(-heads * count // (4 * threads))))

    def slices(self, step: int) -> Iterator[slice]:
        """Slices of one head's query blocks."""
        count = self.blocks_HRJ.shape[1]
        return (slice(start, start + step) for start in range(0, count, step))

    def tokens(self, part: slice) -> slice:
        """The tokens of these query blocks."""
        return slice(part.start * self.block_q, min(part.stop * self.block_q, self.length))

    def queries(self, x_LD: Tensor) -> Tensor:
        """Tokens of a slice as float32 query blocks (R, X, D), zero where the last is short."""
        padded = F.pad(x_LD.float(), (0, 0, 0, -len(x_LD) % self.block_q))
        return padded.unflatten(0, (-1, self.block_q))

    def keys(self, x_LD: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Keys or values of a head as rows (K, F), zero where the last block is short."""
        padded = F.pad(x_LD.to(dtype), (0, 0, 0, -self.length % self.block_k))
        return padded.reshape(-1, self.block_k * x_LD.shape[1])
