"""Named configurations: everything about a model that is not a weight.

A :class:`ModelCard` joins the three networks (DiT, VAE, text encoder) with the defaults of a run.
Sizes, strides, channel counts and lengths are always read from here, never written as constants
elsewhere, so that the embedded models go through exactly the code of the released ones.
Values of the released models: ``Wan2.1-T2V-1.3B/14B``, ``Wan2.2-I2V-A14B``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from turbodiffusion.errors import UsageError


@dataclass(frozen=True)
class DiTConfig:
    """Shape of a Wan diffusion transformer. ``in_dim`` counts noise, mask and image channels."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or self.head_dim % 2:
            raise ValueError(
                f"dim {self.dim} must be num_heads {self.num_heads} × an even head_dim"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def patch_volume(self) -> int:
        """Latent cells in one token."""
        return self.patch[0] * self.patch[1] * self.patch[2]

    @property
    def rope_split(self) -> tuple[int, int, int]:
        """Width of the head that rotates with time, height and width; sums to ``head_dim``."""
        side = 2 * (self.head_dim // 6)
        return self.head_dim - 2 * side, side, side

    @property
    def condition_dim(self) -> int:
        """Extra input channels of an image-to-video network (mask and latents), else 0."""
        return self.in_dim - self.out_dim


@dataclass(frozen=True)
class VAEConfig:
    """Shape of a Wan causal video autoencoder and the scaling of its latents."""

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ValueError("temporal_downsample needs one entry per transition of dim_mult")
        for name in ("latent_mean", "latent_std"):
            values = getattr(self, name)
            if not values:  # unscaled until measured
                fill = 0.0 if name == "latent_mean" else 1.0
                object.__setattr__(self, name, (fill,) * self.z_dim)
            elif len(values) != self.z_dim:
                raise ValueError(f"{name} has {len(values)} entries for {self.z_dim} channels")

    @property
    def spatial_stride(self) -> int:
        return 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_stride(self) -> int:
        return 2 ** sum(self.temporal_downsample)

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip whose ``frames`` is ``temporal_stride·n + 1``."""
        return 1 + (frames - 1) // self.temporal_stride


@dataclass(frozen=True)
class TextEncoderConfig:
    """Shape of a umT5 encoder. Its output is zero-padded to ``text_len`` rows."""

    vocab_size: int = 256384
    dim: int = 4096
    num_heads: int = 64
    head_dim: int = 64
    ffn_dim: int = 10240
    num_layers: int = 24
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6
    text_len: int = 512


@dataclass(frozen=True)
class Attention:
    """How self-attention is computed. ``dense`` ignores the other fields.

    ``topk_per_layer`` gives every block of the network its own ratio instead of ``topk``; 1 keeps
    all keys, for first and last layers that shall be exact. The linear branch remains in those.
    """

    kind: Literal["dense", "sla", "sagesla"] = "dense"
    topk: float = 0.1
    block_q: int = 128
    block_k: int = 64
    feature_map: Literal["softmax", "elu", "relu"] = "softmax"
    topk_per_layer: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        # Settings stored in a video come back as a list.
        object.__setattr__(self, "topk_per_layer", tuple(self.topk_per_layer))

    @property
    def mean_topk(self) -> float:
        """Kept share, averaged over the layers: what counts of work and time need."""
        ratios = self.topk_per_layer or (self.topk,)
        return sum(ratios) / len(ratios)

    def with_topk(self, topk: float | None) -> Attention:
        """The same with one ratio for all layers; None changes nothing."""
        return self if topk is None else replace(self, topk=topk, topk_per_layer=())

    def by_layer(self, layers: int) -> list[Attention]:
        """Settings of each of ``layers`` blocks.

        Raises:
            UsageError: ``topk_per_layer`` has another number of ratios; ``dense`` ignores it.
        """
        ratios = () if self.kind == "dense" else self.topk_per_layer
        if ratios and len(ratios) != layers:
            raise UsageError(
                "dit-topk-layers",
                f"topk_per_layer has {len(ratios)} ratios for a network of {layers} layers.",
                f"Give {layers} ratios, or none to use topk {self.topk:g} in every layer.",
            )
        return [self.with_topk(topk) for topk in ratios] or [self] * layers


@dataclass(frozen=True)
class Baseline:
    """Settings of the unaccelerated sampler that the few-step one is compared with."""

    steps: int = 50
    shift: float = 5.0
    guidance: float = 5.0
    solver: Literal["unipc", "euler"] = "unipc"


@dataclass(frozen=True)
class ModelCard:
    """One model family member: its networks and the defaults of a run.

    ``experts`` is ``("",)`` for one network or ``("high", "low")`` for two; ``few_step`` says that
    the weights are distilled and run with 1–4 calls and no guidance.
    """

    name: str
    task: Literal["t2v", "i2v"]
    dit: DiTConfig
    vae: VAEConfig
    text: TextEncoderConfig
    width: int
    height: int
    frames: int
    experts: tuple[str, ...] = ("",)
    fps: int = 16
    few_step: bool = True
    sigma_max: float = 80.0
    boundary: float = 0.9
    attention: Attention = field(default_factory=Attention)
    baseline: Baseline = field(default_factory=Baseline)
    embedded: bool = False

    @property
    def size_multiple(self) -> int:
        """Width and height must divide by this (VAE stride × patch)."""
        return self.vae.spatial_stride * self.dit.patch[1]

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(channels, latent frames, latent height, latent width) of a clip."""
        s = self.vae.spatial_stride
        return self.dit.out_dim, self.vae.latent_frames(frames), height // s, width // s

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Sequence length of the DiT for a clip."""
        _, t, h, w = self.latent_shape(frames, height, width)
        pt, ph, pw = self.dit.patch
        return (t // pt) * (h // ph) * (w // pw)


WAN_VAE = VAEConfig(
    latent_mean=(
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    latent_std=(
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ),
)  # fmt: skip
UMT5_XXL = TextEncoderConfig()

DIT_1_3B = DiTConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
DIT_14B = DiTConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
DIT_A14B = replace(DIT_14B, in_dim=36)

RELEASED_ATTENTION = Attention(kind="sagesla", topk=0.1)

MINI_VAE = VAEConfig(
    dim=16, z_dim=8, dim_mult=(1, 2, 4), num_res_blocks=1, temporal_downsample=(True, True)
)
MINI_TEXT = TextEncoderConfig(
    vocab_size=384, dim=128, num_heads=4, head_dim=32, ffn_dim=320, num_layers=3, text_len=48
)
MICRO_TEXT = replace(MINI_TEXT, dim=64, num_heads=2, ffn_dim=160, num_layers=2, text_len=24)
MINI_DIT = DiTConfig(
    dim=256, ffn_dim=768, num_heads=4, num_layers=4, in_dim=8, out_dim=8, text_dim=128, text_len=48
)
MICRO_DIT = DiTConfig(
    dim=128, ffn_dim=384, num_heads=2, num_layers=4, in_dim=8, out_dim=8,
    text_dim=64, text_len=24, freq_dim=128,
)  # fmt: skip
MINI_BASELINE = Baseline(steps=50, shift=2.0, guidance=2.0, solver="euler")
MINI_MASK = 4
"""Mask channels of the embedded image-to-video network; its image latents are the VAE's."""


def _teacher(name: str, dit: DiTConfig, text: TextEncoderConfig, frames: int, side: int,
             block: int, topk: float) -> ModelCard:  # fmt: skip
    return ModelCard(
        name=name, task="t2v", dit=dit, vae=MINI_VAE, text=text, width=side, height=side,
        frames=frames, few_step=False, sigma_max=200.0, baseline=MINI_BASELINE, embedded=True,
        attention=Attention("dense", topk=topk, block_q=block, block_k=block),
    )  # fmt: skip


def _student(teacher: ModelCard) -> ModelCard:
    """What a teacher becomes: few steps and sparse attention, everything else as it was."""
    return replace(
        teacher, name=teacher.name.removesuffix("-teacher"), few_step=True,
        attention=replace(teacher.attention, kind="sla"),
    )  # fmt: skip


MINI_TEACHER = _teacher("mini-teacher", MINI_DIT, MINI_TEXT, 33, 128, 64, 0.25)
MICRO_TEACHER = _teacher("micro-teacher", MICRO_DIT, MICRO_TEXT, 17, 64, 16, 0.1)
MINI_I2V_TEACHER = replace(
    MINI_TEACHER, name="mini-i2v-teacher", task="i2v", experts=("high", "low"),
    dit=replace(MINI_DIT, in_dim=MINI_DIT.in_dim + MINI_MASK + MINI_VAE.z_dim),
    baseline=replace(MINI_BASELINE, shift=5.0),
)  # fmt: skip


def _released(name: str, dit: DiTConfig, width: int, height: int) -> ModelCard:
    return ModelCard(
        name=name, task="t2v", dit=dit, vae=WAN_VAE, text=UMT5_XXL, width=width, height=height,
        frames=81, attention=RELEASED_ATTENTION,
    )  # fmt: skip


CARDS: dict[str, ModelCard] = {
    card.name: card
    for card in (
        replace(
            _released("TurboWan2.1-T2V-1.3B-480P", DIT_1_3B, 832, 480),
            baseline=Baseline(shift=8.0, guidance=6.0),
        ),
        _released("TurboWan2.1-T2V-14B-480P", DIT_14B, 832, 480),
        _released("TurboWan2.1-T2V-14B-720P", DIT_14B, 1280, 720),
        ModelCard(
            name="TurboWan2.2-I2V-A14B-720P", task="i2v", dit=DIT_A14B, vae=WAN_VAE, text=UMT5_XXL,
            width=1280, height=720, frames=81, experts=("high", "low"), sigma_max=200.0,
            attention=RELEASED_ATTENTION, baseline=Baseline(steps=40, shift=5.0, guidance=3.5),
        ),
        _student(MINI_TEACHER),
        MINI_TEACHER,
        _student(MINI_I2V_TEACHER),
        MINI_I2V_TEACHER,
        _student(MICRO_TEACHER),
        MICRO_TEACHER,
    )
}  # fmt: skip


def card(name: str) -> ModelCard:
    """The card called ``name``; an unknown name is an error that lists the known ones."""
    if name not in CARDS:
        raise UsageError(
            "card-unknown",
            f"There is no model called {name!r}; known models are {', '.join(CARDS)}.",
            "Use one of these names, or give the path of a checkpoint.",
        )
    return CARDS[name]
