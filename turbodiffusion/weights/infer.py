"""Read a network's configuration back out of the shapes of its tensors.

The file name proves nothing, the shapes do: rows of the patch embedding, columns of the text
embedding, number of blocks. Only what leaves no trace in a shape (head count of a dense DiT, text
length, epsilon) keeps the default and is not compared with a card.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from turbodiffusion.models.cards import CARDS, DiTConfig, ModelCard, TextEncoderConfig, VAEConfig
from turbodiffusion.weights.spec import PROJ_L

Shapes = Mapping[str, tuple[int, ...]]
Config = DiTConfig | VAEConfig | TextEncoderConfig


def infer(kind: str, shapes: Shapes) -> Config | None:
    """Configuration of a network from its released names and shapes; None if parts are missing."""
    try:
        if kind == "dit":
            return _dit(shapes)
        if kind == "vae":
            return _vae(shapes)
        if kind == "text_encoder":
            return _text(shapes)
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return None
    return None


def fitting_cards(config: Config, shapes: Shapes) -> list[ModelCard]:
    """Cards whose network of this kind has exactly these sizes."""
    heads_known = any(PROJ_L in name for name in shapes)
    wanted = _traces(config, heads_known)
    return [c for c in CARDS.values() if _traces(_part(c, config), heads_known) == wanted]


def _part(card: ModelCard, like: Config) -> Config:
    if isinstance(like, DiTConfig):
        return card.dit
    return card.vae if isinstance(like, VAEConfig) else card.text


def _traces(config: Config, heads_known: bool = True) -> tuple[object, ...]:
    """The values of a configuration that can be seen in shapes."""
    if isinstance(config, DiTConfig):
        c = config
        heads = c.num_heads if heads_known else 0
        cells = (c.in_dim * c.patch_volume, c.out_dim * c.patch_volume)
        return c.dim, c.ffn_dim, heads, c.num_layers, *cells, c.text_dim, c.freq_dim
    if isinstance(config, VAEConfig):
        v = config
        return v.dim, v.z_dim, v.dim_mult, v.num_res_blocks, v.temporal_downsample
    t = config
    return (
        t.vocab_size, t.dim, t.num_heads, t.head_dim, t.ffn_dim, t.num_layers, t.num_buckets,
    )  # fmt: skip


def differences(found: Config, wanted: Config, heads_known: bool = True) -> list[str]:
    """What differs between two configurations of one kind, as ``"dim 768 instead of 4096"``."""
    if isinstance(found, DiTConfig):
        names = ["dim", "ffn_dim", "num_heads", "num_layers", "patch cells in", "patch cells out"]
        names += ["text_dim", "freq_dim"]
    elif isinstance(found, VAEConfig):
        names = ["dim", "z_dim", "dim_mult", "num_res_blocks", "temporal_downsample"]
    else:
        names = ["vocab_size", "dim", "num_heads", "head_dim", "ffn_dim", "num_layers"]
        names += ["num_buckets"]
    pairs = zip(names, _traces(found, heads_known), _traces(wanted, heads_known), strict=True)
    return [f"{name} {a} instead of {b}" for name, a, b in pairs if a != b]


def _count(names: Iterable[str], pattern: str) -> int:
    """Highest index captured by ``pattern`` plus one."""
    matches = (re.match(pattern, name) for name in names)
    return 1 + max(int(m[1]) for m in matches if m)


def _dit(shapes: Shapes) -> DiTConfig:
    dim, *inner = shapes["patch_embedding.weight"]
    volume = 4  # every Wan network has patch (1, 2, 2)
    ffn = _first_of(shapes, "blocks.0.ffn.0.weight", "blocks.0.ffn.0.int8_weight")[0]
    proj = shapes.get(f"blocks.0.self_attn.{PROJ_L}.weight")
    return DiTConfig(
        dim=dim,
        ffn_dim=ffn,
        num_heads=dim // proj[0] if proj else max(1, dim // 128),
        num_layers=_count(shapes, r"blocks\.(\d+)\."),
        in_dim=math.prod(inner) // volume,
        out_dim=shapes["head.head.weight"][0] // volume,
        text_dim=shapes["text_embedding.0.weight"][1],
        freq_dim=shapes["time_embedding.0.weight"][1],
    )


def _first_of(shapes: Shapes, *names: str) -> tuple[int, ...]:
    for name in names:
        if name in shapes:
            return shapes[name]
    raise KeyError(names[0])


def _vae(shapes: Shapes) -> VAEConfig:
    dim = shapes["encoder.conv1.weight"][0]
    widths, temporal, blocks, width = [], [], [0], dim
    for k in range(_count(shapes, r"encoder\.downsamples\.(\d+)\.")):
        name = f"encoder.downsamples.{k}"
        if f"{name}.resample.1.weight" in shapes:
            widths.append(width)
            temporal.append(f"{name}.time_conv.weight" in shapes)
            blocks.append(0)
        else:
            width = shapes[f"{name}.residual.6.weight"][0]
            blocks[-1] += 1
    widths.append(width)
    return VAEConfig(
        dim=dim,
        z_dim=shapes["conv2.weight"][0],
        dim_mult=tuple(w // dim for w in widths),
        num_res_blocks=blocks[0],
        temporal_downsample=tuple(temporal),
    )


def _text(shapes: Shapes) -> TextEncoderConfig:
    vocab, dim = shapes["token_embedding.weight"]
    buckets, heads = shapes["blocks.0.pos_embedding.embedding.weight"]
    return TextEncoderConfig(
        vocab_size=vocab,
        dim=dim,
        num_heads=heads,
        head_dim=shapes["blocks.0.attn.q.weight"][0] // heads,
        ffn_dim=shapes["blocks.0.ffn.fc1.weight"][0],
        num_layers=_count(shapes, r"blocks\.(\d+)\."),
        num_buckets=buckets,
    )
