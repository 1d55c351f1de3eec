"""The definition of attention for a few query rows, where a whole L×L matrix cannot be held.

Two heads and three query blocks (the first, a middle one and the last, which is partial) are
computed in float64 against all keys. Every output row depends on its own query only, so these rows
are exactly those of the full result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from turbodiffusion.bench.shapes import Geometry
from turbodiffusion.ops.sla.naive import EPS, feature


@dataclass(frozen=True)
class Rows:
    """Which part of a result is checked: heads, and query blocks of ``size`` tokens."""

    heads: tuple[int, ...]
    blocks: tuple[int, ...]
    size: int
    length: int

    @classmethod
    def pick(cls, length: int, heads: int, size: int) -> Rows:
        last = -(-length // size) - 1
        return cls(tuple(sorted({0, heads - 1})), tuple(sorted({0, last // 2, last})), size, length)

    @property
    def tokens(self) -> Tensor:
        parts = [
            torch.arange(b * self.size, min(self.length, (b + 1) * self.size)) for b in self.blocks
        ]
        return torch.cat(parts)

    @property
    def how(self) -> str:
        return f"over {len(self.tokens)} query rows of {len(self.heads)} heads, in float64"

    def of(self, x_BLND: Tensor) -> Tensor:
        """These rows of the first sample: (heads, rows, D)."""
        tokens = self.tokens.to(x_BLND.device)
        return x_BLND[0, tokens][:, list(self.heads)].transpose(0, 1)

    def keys(self, x_BLND: Tensor) -> Tensor:
        """All tokens of these heads: (heads, L, D)."""
        return x_BLND[0][:, list(self.heads)].transpose(0, 1)


def dense_rows(rows: Rows, q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor) -> Tensor:
    """Softmax attention of ``rows`` to every key, float64 (heads, rows, D)."""
    q, k, v = rows.of(q_BLND).double(), rows.keys(k_BSND).double(), rows.keys(v_BSND).double()
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def sla_rows(
    rows: Rows,
    q_BLND: Tensor,
    k_BLND: Tensor,
    v_BLND: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    blocks: Tensor,
    geometry: Geometry,
    feature_map: str = "softmax",
) -> Tensor:
    """Sparse-linear attention of ``rows`` for the choice ``blocks``, float64 (heads, rows, D)."""
    q, k, v = rows.of(q_BLND).double(), rows.keys(k_BLND).double(), rows.keys(v_BLND).double()
    chosen = blocks[0, list(rows.heads)]
    chosen = chosen[:, rows.tokens.to(chosen.device) // geometry.block_q].long()
    key_block = torch.arange(k.shape[1], device=k.device) // geometry.block_k
    kept = torch.zeros(
        *chosen.shape[:2], int(key_block[-1]) + 1, dtype=torch.bool, device=k.device
    ).scatter_(-1, chosen, True)[..., key_block]
    score = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~kept, float("-inf"))
    sparse = score.softmax(-1) @ v

    phi_q = feature(rows.of(q_BLND), feature_map).double()
    phi_k = feature(rows.keys(k_BLND), feature_map).double()
    joined = phi_q @ (phi_k.mT @ v) / (EPS + phi_q @ phi_k.sum(1).unsqueeze(-1))
    return sparse + joined @ proj_weight.double().mT + proj_bias.double()
