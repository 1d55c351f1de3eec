"""Say what a checkpoint is from its header: kind, card, layout, quantisation, attention, expert.

Nothing is asked of the user and nothing is believed from the file name but one thing: the two
experts of Wan2.2 have identical shapes, so only the name (or our own metadata) tells high from low.
Torch-free; :mod:`.check` turns a description that does not suit into an error.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from turbodiffusion.models.cards import CARDS, DiTConfig, ModelCard, TextEncoderConfig, VAEConfig
from turbodiffusion.weights.header import Header
from turbodiffusion.weights.infer import Config, fitting_cards, infer
from turbodiffusion.weights.layouts import Layout, resolve
from turbodiffusion.weights.spec import PROJ_L, Spec, dit_spec, text_spec, vae_spec

SHORT = {
    "bfloat16": "bf16",
    "float32": "fp32",
    "float16": "fp16",
    "float64": "fp64",
    "float8_e4m3fn": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2",
}

# (dialect, pattern of a key); LoRA files are told from networks by these endings.
LORA_DIALECTS: tuple[tuple[str, str], ...] = (
    ("kohya", r"^lora_unet_"),
    ("lycoris", r"^lycoris_|\.(lokr_|hada_)"),
    ("diffusers-peft", r"^transformer(_2)?\..*\.lora_[AB]\b"),
    ("comfyui", r"\.lora_(down|up)\.weight$"),
    ("peft", r"\.lora_[AB]\b"),
    ("other", r"(_lora|\.lora|\.lora_linear_layer)\.(up|down)\.weight$"),
    ("diff", r"\.diff(_b|_m)?$"),
)


@dataclass(frozen=True)
class Description:
    """What :func:`describe` found.

    ``kind`` is ``dit``, ``vae``, ``text_encoder``, ``lora`` or ``unknown``; ``cards`` are the names
    of all cards whose sizes fit, the likeliest first; ``layout`` is the weight type (``bf16``,
    ``fp32``, ``int8``, …); ``expert`` is ``high``, ``low``, ``unknown``, or ``""`` where the card
    has one network. ``missing``, ``unexpected`` and ``mismatched`` compare with the complete list
    of the released format. ``unsupported`` is the reason why the file cannot be loaded, or ``""``.
    """

    path: Path
    container: str
    kind: str
    cards: tuple[str, ...]
    layout: str
    dialect: str
    wrappers: tuple[str, ...]
    quantized: bool
    attention: str
    expert: str
    config: Config | None
    tensors: int
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    metadata: dict[str, str]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    unsupported: str = ""
    foreign: tuple[str, ...] = ()

    @property
    def card(self) -> str:
        """The likeliest card, or ``""``."""
        return self.cards[0] if self.cards else ""

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)


def describe(header: Header) -> Description:
    """Identify a checkpoint from the names and shapes of its tensors."""
    layout = resolve(header.shapes, header.wrapper)
    shapes = released_shapes(header, layout)
    kind = layout.kind or ("lora" if lora_dialect(header.tensors) else "unknown")
    dialect = layout.dialect or lora_dialect(header.tensors)
    config = infer(kind, shapes) if layout.supported else None
    quantized = any(name.endswith(".int8_weight") for name in shapes)
    sla = any(PROJ_L in name for name in shapes)
    cards = _ranked(header, fitting_cards(config, shapes), sla) if config else ()
    missing, unexpected, mismatched = _compare(config, shapes, quantized, sla, layout.others)
    sizes: Counter[str] = Counter()
    for info in header.tensors.values():
        sizes[SHORT.get(info.dtype, info.dtype)] += info.nbytes
    return Description(
        path=header.path,
        container=header.container,
        kind=kind,
        cards=cards,
        layout="int8" if quantized else max(sizes, key=lambda name: sizes[name], default=""),
        dialect=dialect,
        wrappers=layout.wrappers,
        quantized=quantized,
        attention=("sla" if sla else "dense") if kind == "dit" else "",
        expert=_expert(header, kind, cards),
        config=config,
        tensors=len(header.tensors),
        parameters=sum(t.elements for n, t in header.tensors.items() if not n.endswith(".scale")),
        bytes=header.nbytes,
        dtypes=dict(Counter(SHORT.get(t.dtype, t.dtype) for t in header.tensors.values())),
        metadata=header.metadata,
        missing=missing,
        unexpected=unexpected,
        mismatched=mismatched,
        unsupported=_unsupported(header, layout),
        foreign=header.foreign,
    )


def released_shapes(header: Header, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Released name → shape as the modules hold it (a 5-D patch embedding flattened)."""
    shapes = {}
    for name, key in layout.names.items():
        info = header.tensors[key]
        five = name == "patch_embedding.weight" and len(info.shape) == 5 and info.shape[0]
        shapes[name] = (info.shape[0], info.elements // info.shape[0]) if five else info.shape
    return shapes


def lora_dialect(keys: Iterable[str]) -> str:
    """The naming of a LoRA file (dialects of :data:`LORA_DIALECTS`), ``""`` if it is none."""
    names = list(keys)
    for dialect, pattern in LORA_DIALECTS:
        if any(re.search(pattern, name) for name in names):
            return dialect
    return ""


def network_spec(config: Config, quantized: bool = False, sla: bool = False) -> Spec:
    """The complete tensor list of a network with this configuration."""
    if isinstance(config, DiTConfig):
        return dit_spec(config, quantized, sla)
    return vae_spec(config) if isinstance(config, VAEConfig) else text_spec(config)


def _compare(
    config: Config | None,
    shapes: dict[str, tuple[int, ...]],
    quantized: bool,
    sla: bool,
    others: tuple[str, ...],
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    if config is None:
        return (), others, ()
    spec = network_spec(config, quantized, sla)
    wrong = [
        f"{name} {list(shape)} instead of {list(spec[name].shape)}"
        for name, shape in shapes.items()
        if name in spec and shape != spec[name].shape
    ]
    unexpected = (*(name for name in shapes if name not in spec), *others)
    return tuple(name for name in spec if name not in shapes), unexpected, tuple(wrong)


def _ranked(header: Header, cards: list[ModelCard], sla: bool) -> tuple[str, ...]:
    """Names of fitting cards, the likeliest first.

    First comes the one named by our metadata, then those whose name is part of the file's, the
    longest name first. Of the rest, sparse attention speaks for a student, its lack for a teacher.
    """
    said = header.metadata.get("card", "")
    stem = re.sub(r"[-_](high|low)", "", header.path.stem).replace("_", "-").lower()

    def rank(card: ModelCard) -> tuple[bool, int, bool]:
        plain = card.name.lower().removeprefix("turbo")
        words = plain.split("-")
        named = plain in stem or set(words) <= set(stem.split("-"))
        return card.name != said, -len(words) * named, card.few_step != sla

    return tuple(card.name for card in sorted(cards, key=rank))


def expert_of(path: Path) -> str:
    """``high`` or ``low`` from a file's or its folder's name, else ``unknown``."""
    for name in (path.name, path.parent.name):
        found = re.findall(r"(?<![a-z])(high|low)(?![a-z])", name.lower())
        if len(set(found)) == 1:
            return found[0]
    folder = path if path.is_dir() else path.parent
    if folder.name == "transformer_2":
        return "low"
    if folder.name == "transformer" and (folder.parent / "transformer_2").is_dir():
        return "high"
    return "unknown"


def warn_if_swapped(high: Path, low: Path) -> None:
    """Warn when the names of two expert files say the opposite of how they are used."""
    if expert_of(high) == "low" or expert_of(low) == "high":
        warnings.warn(
            f"The experts look swapped: {high.name} is used for high noise and {low.name} for low "
            "noise. Their shapes are identical, so only the names can tell.",
            stacklevel=2,
        )


def _expert(header: Header, kind: str, cards: tuple[str, ...]) -> str:
    if kind != "dit" or not any(len(CARDS[name].experts) > 1 for name in cards):
        return ""
    return header.metadata.get("expert") or expert_of(header.path)


def _unsupported(header: Header, layout: Layout) -> str:
    keys = header.tensors
    if any("img_emb." in k or "k_img" in k or "image_embedder" in k or "add_k_proj" in k
           for k in keys) and layout.kind == "dit":  # fmt: skip
        return "clip"
    if any(k.endswith(("scaled_fp8", ".scale_weight")) for k in keys):
        return "fp8"
    if any(info.dtype.startswith("float8") for info in keys.values()):
        return "fp8"
    if layout.kind and not layout.supported:
        return layout.dialect
    return ""


def config_line(config: Config | None) -> str:
    """The sizes of a network in one line for people."""
    if isinstance(config, DiTConfig):
        c = config
        return (
            f"dim {c.dim}, ffn {c.ffn_dim}, {c.num_layers} blocks, {c.in_dim} channels in, "
            f"{c.out_dim} out, text width {c.text_dim}"
        )
    if isinstance(config, VAEConfig):
        v = config
        return (
            f"dim {v.dim}, {v.z_dim} latent channels, stride {v.temporal_stride} × "
            f"{v.spatial_stride} × {v.spatial_stride}"
        )
    if isinstance(config, TextEncoderConfig):
        t = config
        return (
            f"width {t.dim}, {t.num_layers} layers, {t.num_heads} heads, vocabulary {t.vocab_size}"
        )
    return ""
