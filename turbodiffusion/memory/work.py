"""What a request costs, phase by phase: operations, traffic and bytes, from the card's sizes alone.

Every figure is a formula in the sizes of the networks. Operations count a multiply-add as two.

Sources. Diffusion transformer: operations and traffic of each kernel of a block, with n = top-k ·
keys of the sparse branch; the formulas give 101.8 T 8-bit operations for one step of 1.3B at 480p.
Autoencoder: a walk through its convolutions (275.4 TFLOP for 81 frames of 480p); its largest moment
is the last stage, where one convolution holds its input, the residual, the frames before it, the
copy of them it keeps, and its output. ``benchmarks/check_plan.py`` compares with live tensors.

Letters: L tokens, d model width, f feed-forward width, T text rows, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from turbodiffusion.models.cards import Attention, ModelCard, VAEConfig

HIDDEN_TENSORS = {"triton": 6.0, "portable": 23.0}
"""Tensors of L·d that are alive at the largest moment of a block, besides one of L·f. The portable
sparse attention works in float32: 20 (1.3B) to 23 (14B) were counted at full size on the meta
device. The figure for the kernels is a first-order estimate."""

MEMORY_BOUND = 23
"""Reads and writes of L·d bytes per block by kernels that the memory limits: three norms (3 each),
rotation (8), preparation of keys and values (6)."""


@dataclass(frozen=True)
class Work:
    """One phase of a run.

    Attributes:
        name: ``text``, ``condition``, ``denoise`` or ``decode``.
        eight, sixteen: 8-bit and 16-bit (on a CPU: float32) operations.
        traffic: bytes moved by what the memory limits.
        weights: bytes of the network in use. block: of one of its ``blocks`` equal parts that
            can be streamed; 0 if it has none.
        activations: bytes besides the weights at the largest moment.
        passes: how often the weights are read.
    """

    name: str
    eight: float
    sixteen: float
    traffic: float
    weights: int
    block: int
    activations: int
    passes: int = 1
    blocks: int = 0


@dataclass(frozen=True)
class Sizes:
    """Bytes of the networks as they lie in memory; a block is one transformer block."""

    dit: int
    dit_block: int
    text: int
    text_block: int
    vae: int


@dataclass(frozen=True)
class Shape:
    """What is asked for, resolved: every field has a value."""

    card: ModelCard
    width: int
    height: int
    frames: int
    steps: int
    guided: bool = False
    element: int = 2
    """Bytes of an activation: 2 for bf16, 4 for float32."""
    form: str = "triton"
    """Which operators run: ``triton`` or ``portable``."""
    samples: int = 1
    """Videos of one prompt: denoised one after the other, decoded together."""


def phases(shape: Shape, sizes: Sizes, attention: Attention, quantised: bool) -> list[Work]:
    """The phases of a run in order."""
    out = [_text(shape, sizes)]
    if shape.card.task == "i2v":
        out.append(encode_work(shape, sizes))
    return [*out, _denoise(shape, sizes, attention, quantised), decode_work(shape, sizes)]


def _text(shape: Shape, sizes: Sizes) -> Work:
    c = shape.card.text
    inner, rows = c.num_heads * c.head_dim, c.text_len
    per_layer = 2 * rows * c.dim * (4 * inner + 3 * c.ffn_dim) + 4 * rows * rows * inner
    prompts = 2 if shape.guided else 1
    scores = 3 * c.num_heads * rows * rows * 4  # with their softmax and its float32 copy
    live = scores + rows * (4 * c.dim + 3 * c.ffn_dim) * shape.element
    operations = float(prompts * c.num_layers * per_layer)
    return Work(
        "text", 0.0, operations, 0.0, sizes.text, sizes.text_block, live, prompts, c.num_layers
    )


def _denoise(shape: Shape, sizes: Sizes, attention: Attention, quantised: bool) -> Work:
    c, tokens = shape.card.dit, shape.card.tokens(shape.frames, shape.height, shape.width)
    d, f, rows = c.dim, c.ffn_dim, c.text_len
    joined = shape.guided and shape.card.embedded  # both branches as one batch
    calls = shape.samples * shape.steps * (2 if shape.guided else 1)
    linears = 12 * tokens * d * d + 4 * tokens * d * f
    cross = 4 * tokens * rows * d
    eight = sixteen = 0.0
    if attention.kind == "dense":
        sixteen += 4 * tokens * tokens * d
    else:
        keys = max(attention.block_k, round(attention.mean_topk * tokens))
        blocks = (tokens / attention.block_q) * (tokens / attention.block_k)
        sparse = 4 * tokens * keys * d
        sixteen += 6 * tokens * d * c.head_dim + 2 * blocks * d
        if quantised and attention.kind == "sagesla":
            eight += sparse
        else:
            sixteen += sparse
    if quantised:
        eight += linears
    else:
        sixteen += linears
    sixteen += cross
    ends = 2 * tokens * d * c.patch_volume * (c.in_dim + c.out_dim)
    once = 4 * rows * d * d * c.num_layers  # keys and values of the text, kept over the steps
    hidden, wide = tokens * d * shape.element, tokens * f * shape.element
    kept = 2 * rows * d * c.num_layers * shape.element
    live = round(HIDDEN_TENSORS[shape.form] * hidden) + wide
    live = live * (2 if joined else 1) + kept
    return Work(
        "denoise",
        calls * c.num_layers * eight,
        calls * (c.num_layers * sixteen + ends) + once,
        calls * c.num_layers * MEMORY_BOUND * hidden / 2,
        sizes.dit,
        sizes.dit_block,
        live,
        passes=calls,
        blocks=c.num_layers,
    )


def decode_work(shape: Shape, sizes: Sizes, pixels: int | None = None) -> Work:
    """The autoencoder's decoding; ``pixels``: of a tile instead of the frame."""
    vae, frame = shape.card.vae, shape.width * shape.height
    area = frame if pixels is None else pixels
    stride, later = vae.temporal_stride, vae.latent_frames(shape.frames) - 1
    first, further = decode_operations(vae)
    live = (_cache(vae) + vae.dim * (4 * stride + 4)) * area * shape.element * shape.samples
    operations = (first + later * further) * frame + (1 + later) * _attention(vae, frame)
    return Work("decode", 0.0, operations * shape.samples, 0.0, sizes.vae, 0, int(live))


def encode_work(shape: Shape, sizes: Sizes, pixels: int | None = None) -> Work:
    """As :func:`decode_work`: the clip of an image and grey frames is encoded whole."""
    vae, frame = shape.card.vae, shape.width * shape.height
    area = frame if pixels is None else pixels
    stride, later = vae.temporal_stride, vae.latent_frames(shape.frames) - 1
    first, further = encode_operations(vae)
    live = (
        _cache(vae, encoder=True) + vae.dim * (5 * stride + 4)
    ) * area + 6 * shape.frames * frame
    operations = (first + later * further) * frame + (1 + later) * _attention(vae, frame)
    return Work("condition", 0.0, operations, 0.0, sizes.vae, 0, int(live * shape.element))


def decode_operations(vae: VAEConfig) -> tuple[float, float]:
    """Operations of the convolutions per pixel of a frame, for the first latent frame and for
    each later one."""
    return tuple(
        sum(2 * taps * cin * cout * frames / shrink for taps, cin, cout, frames, shrink in
            _decoder(vae, late))
        for late in (False, True)
    )  # type: ignore[return-value]  # fmt: skip


def encode_operations(vae: VAEConfig) -> tuple[float, float]:
    """As :func:`decode_operations`, for the encoder."""
    return tuple(
        sum(2 * taps * cin * cout * frames / shrink for taps, cin, cout, frames, shrink in
            _encoder(vae, late))
        for late in (False, True)
    )  # type: ignore[return-value]  # fmt: skip


Conv = tuple[int, int, int, float, float]
"""Taps of the kernel, channels in and out, frames made, pixels of the frame per position."""


def _decoder(vae: VAEConfig, late: bool) -> Iterator[Conv]:
    widths = [vae.dim * m for m in reversed(vae.dim_mult)]
    frames, shrink, channels = 1.0, float(vae.spatial_stride) ** 2, widths[0]
    yield 1, vae.z_dim, vae.z_dim, frames, shrink
    yield 27, vae.z_dim, channels, frames, shrink
    yield from _middle(channels, frames, shrink)
    for stage, width in enumerate(widths):
        for _ in range(vae.num_res_blocks + 1):
            yield from _residual(channels, width, frames, shrink)
            channels = width
        if stage < len(widths) - 1:
            if vae.temporal_downsample[-1 - stage] and late:
                yield 3, width, 2 * width, frames, shrink
                frames *= 2
            shrink /= 4
            channels = width // 2
            yield 9, width, channels, frames, shrink
    yield 27, channels, 3, frames, shrink


def _encoder(vae: VAEConfig, late: bool) -> Iterator[Conv]:
    widths = [vae.dim * m for m in vae.dim_mult]
    frames, shrink, channels = (float(vae.temporal_stride) if late else 1.0), 1.0, vae.dim
    yield 27, 3, channels, frames, shrink
    for stage, width in enumerate(widths):
        for _ in range(vae.num_res_blocks):
            yield from _residual(channels, width, frames, shrink)
            channels = width
        if stage < len(widths) - 1:
            shrink *= 4
            yield 9, width, width, frames, shrink
            if vae.temporal_downsample[stage] and late:
                frames /= 2
                yield 3, width, width, frames, shrink
    yield from _middle(channels, frames, shrink)
    yield 27, channels, 2 * vae.z_dim, frames, shrink


def _attention(vae: VAEConfig, pixels: int) -> float:
    """Operations of the middle's attention for one latent frame, quadratic in the picture."""
    return 4.0 * (pixels / vae.spatial_stride**2) ** 2 * vae.dim * vae.dim_mult[-1]


def _residual(into: int, out: int, frames: float, shrink: float) -> Iterator[Conv]:
    yield 27, into, out, frames, shrink
    yield 27, out, out, frames, shrink
    if into != out:
        yield 1, into, out, frames, shrink


def _middle(width: int, frames: float, shrink: float) -> Iterator[Conv]:
    yield from _residual(width, width, frames, shrink)
    yield 1, width, 4 * width, frames, shrink
    yield from _residual(width, width, frames, shrink)


def _cache(vae: VAEConfig, encoder: bool = False) -> float:
    """Elements per pixel that the causal convolutions keep: two frames of each one's input.

    Every convolution with three taps in time keeps them; those of the encoder's time strides one.
    """
    total = 0.0
    for taps, into, _, _, shrink in _encoder(vae, True) if encoder else _decoder(vae, True):
        past = {27: 2, 3: 1 if encoder else 2}.get(taps, 0)
        total += past * into / shrink
    return total
