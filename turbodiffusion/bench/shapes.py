"""The sizes at which operators are measured, and what each step costs there.

Sizes come from the model cards. A multiply-add counts as 2 operations. Costs are those of one
block and one sample; letters as in the network: L tokens, d model width, f FFN width, N heads,
D head width, S text positions.

========================  ==========================================
linears                   12 L d² + 4 S d² + 4 L d f
dense self-attention      4 L² d
cross-attention           4 L S d
sparse branch             4 L n d, n kept keys a query
linear branch             6 L d D   (state, product with it, proj_l)
block map                 2 ⌈L/BQ⌉ ⌈L/BK⌉ d
embeddings and head       256 L d   once a forward pass
========================  ==========================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import CARDS, ModelCard

Rate = Literal["bf16", "8-bit", "copy"]


@dataclass(frozen=True)
class Geometry:
    """Blocks of the sparse attention: ``topk`` of the key blocks are kept."""

    topk: float
    block_q: int
    block_k: int

    def kept_keys(self, length: int) -> int:
        """Keys a query attends to: whole blocks, at least one."""
        blocks = -(-length // self.block_k)
        return min(blocks, max(1, int(self.topk * blocks))) * self.block_k


@dataclass(frozen=True)
class Shape:
    """One model at one frame size.

    ``grid`` is the tokens along time, height and width. ``reduced`` says how it differs from the
    released one, in words for the table; empty where it is that.
    """

    name: str
    card: ModelCard
    grid: tuple[int, int, int]
    dim: int
    ffn_dim: int
    heads: int
    layers: int
    text: int
    reduced: str = ""

    @property
    def tokens(self) -> int:
        t, h, w = self.grid
        return t * h * w

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    def reduce(self, grid: tuple[int, int, int], heads: int, layers: int = 2) -> Shape:
        """The same network on a smaller ``grid`` with fewer heads and layers, for a slow machine.

        The head width and the ratio of the FFN stay, so that every kernel does the work of a
        full-size one, only less of it.
        """
        heads, layers = min(heads, self.heads), min(layers, self.layers)
        dim = heads * self.head_dim
        ffn = max(128, self.ffn_dim * dim // self.dim // 128 * 128)
        t, h, w = grid
        return replace(
            self, grid=grid, dim=dim, ffn_dim=ffn, heads=heads, layers=layers,
            reduced=f"{t * h * w:,} tokens, {heads} heads, {layers} layers",
        )  # fmt: skip


def shape(card: ModelCard) -> Shape:
    """The shape of a card at its own frame size, called like ``1.3b-480p``."""
    _, t, h, w = card.latent_shape(card.frames, card.height, card.width)
    pt, ph, pw = card.dit.patch
    name = "-".join(card.name.lower().split("-")[-2:])
    dit = card.dit
    return Shape(
        name, card, (t // pt, h // ph, w // pw), dit.dim, dit.ffn_dim, dit.num_heads,
        dit.num_layers, dit.text_len,
    )  # fmt: skip


def shapes() -> dict[str, Shape]:
    """Released text-to-video models by name, smallest first."""
    found = [shape(c) for c in CARDS.values() if c.task == "t2v" and not c.embedded]
    return {s.name: s for s in sorted(found, key=lambda s: s.dim * s.tokens)}


def named(names: list[str]) -> list[Shape]:
    """The shapes called ``names``, in the table's order; all of them for an empty list.

    Raises:
        UsageError: a name is unknown.
    """
    known = shapes()
    for name in names:
        if name.lower() not in known:
            raise UsageError(
                "bench-shape-unknown",
                f"There is no shape {name!r}; shapes are {', '.join(known)}.",
                "Use one of these names with --shapes.",
            )
    wanted = {name.lower() for name in names}
    return [s for s in known.values() if not wanted or s.name in wanted]


def linear_flops(s: Shape) -> int:
    """Linears of one block: q, k, v, o, cross q and o over tokens, cross k and v over text, FFN."""
    return 12 * s.tokens * s.dim**2 + 4 * s.text * s.dim**2 + 4 * s.tokens * s.dim * s.ffn_dim


def dense_flops(s: Shape) -> int:
    return 4 * s.tokens**2 * s.dim


def cross_flops(s: Shape) -> int:
    return 4 * s.tokens * s.text * s.dim


def sparse_flops(s: Shape, g: Geometry) -> int:
    return 4 * s.tokens * g.kept_keys(s.tokens) * s.dim


def branch_flops(s: Shape) -> int:
    return 6 * s.tokens * s.dim * s.head_dim


def map_flops(s: Shape, g: Geometry) -> int:
    return 2 * (-(-s.tokens // g.block_q)) * (-(-s.tokens // g.block_k)) * s.dim


def embedding_flops(s: Shape) -> int:
    return 256 * s.tokens * s.dim


@dataclass(frozen=True)
class Step:
    """One kernel of the fused block: operations at a rate, and bytes read and written."""

    name: str
    rate: Rate
    flops: float
    bytes: float

    def seconds(self, rates: Mapping[Rate, float]) -> float:
        """The time that the slower of arithmetic and memory needs."""
        arithmetic = self.flops / rates[self.rate] if self.rate != "copy" else 0.0
        return max(arithmetic, self.bytes / rates["copy"])


def block_steps(s: Shape, g: Geometry) -> list[Step]:
    """The kernels of one fused int8 block with sparse 8-bit attention, in order.

    Bytes a kernel reads and writes: activations bf16 between kernels, int8 where a kernel
    quantises its output, weights int8, text keys and values kept from the first step on.
    """
    ld, lf, d2, df = s.tokens * s.dim, s.tokens * s.ffn_dim, s.dim**2, s.dim * s.ffn_dim
    td = s.text * s.dim
    return [
        Step("layer norm, modulate, quantise", "copy", 0, 3 * ld),
        Step("q, k, v", "8-bit", 6 * ld * s.dim, ld + 3 * d2 + 6 * ld),
        Step("RMS norm, rotate, pool", "copy", 0, 8 * ld + 512 * s.tokens),
        Step("smooth and quantise k, v; linear state", "bf16", 2 * ld * s.head_dim, 6 * ld),
        Step("block map", "bf16", map_flops(s, g), 0),
        Step("sparse attention", "8-bit", sparse_flops(s, g), 5 * ld),
        Step("linear branch, proj_l", "bf16", 4 * ld * s.head_dim, 0),
        Step("o, gate, residual", "8-bit", 2 * ld * s.dim, 5 * ld + d2),
        Step("affine layer norm, quantise", "copy", 0, 3 * ld),
        Step("cross q", "8-bit", 2 * ld * s.dim, 3 * ld + d2),
        Step("cross-attention", "bf16", cross_flops(s), 3 * ld + 4 * td),
        Step("cross o, residual", "8-bit", 2 * ld * s.dim, 5 * ld + d2),
        Step("layer norm, modulate, quantise", "copy", 0, 3 * ld),
        Step("FFN up, GELU, quantise", "8-bit", 2 * ld * s.ffn_dim, ld + df + lf),
        Step("FFN down, gate, residual", "8-bit", 2 * ld * s.ffn_dim, lf + df + 4 * ld),
    ]


def floor_seconds(s: Shape, g: Geometry, rates: Mapping[Rate, float]) -> float:
    """The least time of one forward pass: the sum over its kernels of their own least times.

    ``rates`` are operations and bytes a second; the embeddings and the head run in bf16.
    """
    block = sum(step.seconds(rates) for step in block_steps(s, g))
    return s.layers * block + embedding_flops(s) / rates["bf16"]
