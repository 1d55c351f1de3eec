"""Key dialects: the same networks under other names, and the way back.

The released names are those of the modules in ``models/``. Other writers wrap them (a prefix from
a training framework, an infix from activation checkpointing) or rename them (diffusers,
transformers). A dialect is a table of (released name, other name) where ``#`` stands for a block
number; a name maps with everything behind it, so ``.weight``, ``.bias`` or ``.int8_weight`` follow.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

from turbodiffusion.errors import WeightsError

Table = tuple[tuple[str, str], ...]

INFIX = "_checkpoint_wrapped_module."
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.", "model.", "module.")
PATCH = "patch_embedding.weight"

_ATTENTION_NAMES = (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))

DIFFUSERS_DIT: Table = (
    ("patch_embedding", "patch_embedding"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("blocks.#.modulation", "blocks.#.scale_shift_table"),
    *(
        (f"blocks.#.{ours}_attn.{a}", f"blocks.#.{theirs}.{b}")
        for ours, theirs in (("self", "attn1"), ("cross", "attn2"))
        for a, b in (*_ATTENTION_NAMES, ("norm_q", "norm_q"), ("norm_k", "norm_k"))
    ),
    # The norm before cross-attention is the third here and the second there.
    ("blocks.#.norm3", "blocks.#.norm2"),
    ("blocks.#.ffn.0", "blocks.#.ffn.net.0.proj"),
    ("blocks.#.ffn.2", "blocks.#.ffn.net.2"),
    ("head.modulation", "scale_shift_table"),
    ("head.head", "proj_out"),
)

TRANSFORMERS_TEXT: Table = (
    ("token_embedding", "shared"),
    ("blocks.#.norm1", "encoder.block.#.layer.0.layer_norm"),
    *((f"blocks.#.attn.{n}", f"encoder.block.#.layer.0.SelfAttention.{n}") for n in "qkvo"),
    (
        "blocks.#.pos_embedding.embedding",
        "encoder.block.#.layer.0.SelfAttention.relative_attention_bias",
    ),
    ("blocks.#.norm2", "encoder.block.#.layer.1.layer_norm"),
    ("blocks.#.ffn.gate.0", "encoder.block.#.layer.1.DenseReluDense.wi_0"),
    ("blocks.#.ffn.fc1", "encoder.block.#.layer.1.DenseReluDense.wi_1"),
    ("blocks.#.ffn.fc2", "encoder.block.#.layer.1.DenseReluDense.wo"),
    ("norm", "encoder.final_layer_norm"),
)
# A second name of a tied tensor, accepted in place of the first or beside it.
ALIASES = {"encoder.embed_tokens.weight": "shared.weight"}
# The tokenizer's own file, which some repackages carry along as a tensor of bytes.
IGNORED = ("spiece_model",)

_RESIDUAL = (
    ("residual.0", "norm1"),
    ("residual.2", "conv1"),
    ("residual.3", "norm2"),
    ("residual.6", "conv2"),
    ("shortcut", "conv_shortcut"),
)
MAX_STAGES = 8


@lru_cache
def diffusers_vae(per_stage: int) -> Table:
    """The VAE table. ``per_stage`` is the number of residual blocks of a decoder stage: diffusers
    groups the flat list of up-sampling layers into stages, which depends on it (3 for Wan)."""
    table: list[tuple[str, str]] = [("conv1", "quant_conv"), ("conv2", "post_quant_conv")]
    residuals = [("encoder.downsamples.#", "encoder.down_blocks.#")]
    for side in ("encoder", "decoder"):
        table += [
            (f"{side}.conv1", f"{side}.conv_in"),
            (f"{side}.head.0", f"{side}.norm_out"),
            (f"{side}.head.2", f"{side}.conv_out"),
            (f"{side}.middle.1", f"{side}.mid_block.attentions.0"),
        ]
        residuals += [
            (f"{side}.middle.0", f"{side}.mid_block.resnets.0"),
            (f"{side}.middle.2", f"{side}.mid_block.resnets.1"),
        ]
    group = per_stage + 1
    for stage in range(MAX_STAGES):
        for k in range(per_stage):
            flat = f"decoder.upsamples.{stage * group + k}"
            residuals.append((flat, f"decoder.up_blocks.{stage}.resnets.{k}"))
        flat = f"decoder.upsamples.{stage * group + per_stage}"
        table.append((flat, f"decoder.up_blocks.{stage}.upsamplers.0"))
    table += [(f"{a}.{m}", f"{b}.{n}") for a, b in residuals for m, n in _RESIDUAL]
    # Last: what is no residual block in the encoder's flat list keeps its inner names.
    return (*table, ("encoder.downsamples.#", "encoder.down_blocks.#"))


@lru_cache
def _compiled(table: Table, column: int) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """All rows as one pattern; row n matches as groups (n_name, n_rest)."""
    rows = []
    for n, row in enumerate(table):
        name = re.escape(row[column]).replace(r"\#", rf"(?P<i{n}>\d+)")
        rows.append(rf"(?P<r{n}>{name}(?P<s{n}>\..+)?)")
    return re.compile("|".join(rows)), tuple(row[1 - column] for row in table)


def translate(name: str, table: Table, *, back: bool = False) -> str | None:
    """Map ``name`` from the other dialect to the released one, or ``back``; None if unknown."""
    pattern, targets = _compiled(table, 0 if back else 1)
    match = pattern.fullmatch(name)
    if match is None:
        return None
    n = next(n for n in range(len(targets)) if match[f"r{n}"] is not None)
    target = targets[n]
    if "#" in target:
        target = target.replace("#", match[f"i{n}"])
    return target + (match[f"s{n}"] or "")


@dataclass(frozen=True)
class Layout:
    """How the keys of one file relate to the released names.

    ``names`` maps released name → key in the file, in file order; ``others`` are keys without a
    counterpart. ``wrappers`` lists what was stripped, for people.
    """

    kind: str  # "dit", "vae", "text_encoder", "" when not recognised
    dialect: str  # "released", "diffusers", "transformers", "fastvideo"
    wrappers: tuple[str, ...]
    names: dict[str, str]
    others: tuple[str, ...]

    @property
    def supported(self) -> bool:
        return self.dialect in ("released", "diffusers", "transformers")


# (kind, dialect, names that must all be present); the first row that fits decides.
_ANCHORS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("dit", "fastvideo", ("patch_embedding.proj.weight", "blocks.0.to_q.weight")),
    ("dit", "fastvideo", ("condition_embedder.time_modulation.linear.weight",)),
    ("dit", "fastvideo", ("blocks.0.to_q.weight", "blocks.0.ffn.fc_in.weight")),
    ("dit", "diffusers", (PATCH, "blocks.0.scale_shift_table")),
    ("dit", "released", (PATCH, "blocks.0.modulation")),
    ("dit", "released", (PATCH, "head.head.weight")),
    ("vae", "diffusers", ("encoder.conv_in.weight", "decoder.conv_in.weight")),
    ("vae", "released", ("encoder.conv1.weight", "decoder.conv1.weight", "conv2.weight")),
    ("text_encoder", "released", ("token_embedding.weight", "norm.weight")),
    ("text_encoder", "transformers", ("encoder.block.0.layer.0.SelfAttention.q.weight",)),
)


def resolve(shapes: Mapping[str, tuple[int, ...]], wrapper: str = "") -> Layout:
    """Recognise the dialect of a set of keys and map them to released names.

    Args:
        shapes: key → shape as they stand in the file.
        wrapper: the outer dict's key the tensors were found under, only passed on.
    """
    wrappers = [f'{{"{wrapper}": …}}'] if wrapper else []
    keys = {key: key for key in shapes}
    if any(INFIX in key for key in keys):
        wrappers.append(INFIX)
        keys = {key.replace(INFIX, ""): full for key, full in keys.items()}
    prefix, kind, dialect = _recognise(keys)
    if prefix:
        wrappers.append(prefix)
    inner = {k[len(prefix) :]: full for k, full in keys.items() if k.startswith(prefix)}
    others = [full for k, full in keys.items() if not k.startswith(prefix)]
    for ignored in IGNORED:
        inner.pop(ignored, None)
    if kind == "dit" and len(shapes.get(inner.get(PATCH, ""), ())) == 5:
        wrappers.append("5-D patch_embedding")
    table = _table(kind, dialect, inner)
    names: dict[str, str] = {}
    for key, full in inner.items():
        name = translate(ALIASES.get(key, key), table) if table else key
        if name is None:
            others.append(full)
        elif name not in names:
            names[name] = full
        elif ALIASES.get(key, key) not in ALIASES.values():  # a tied tensor stored twice is fine
            others.append(full)
    return Layout(kind, dialect, tuple(wrappers), names, tuple(others))


def _recognise(keys: Collection[str]) -> tuple[str, str, str]:
    prefixes = ["", *PREFIXES]
    prefixes += [a + b for a in PREFIXES for b in PREFIXES if a != b]
    for prefix in prefixes:
        for kind, dialect, anchors in _ANCHORS:
            if all(prefix + anchor in keys for anchor in anchors):
                return prefix, kind, dialect
    return "", "", ""


def _table(kind: str, dialect: str, keys: Collection[str]) -> Table | None:
    if (kind, dialect) == ("dit", "diffusers"):
        return DIFFUSERS_DIT
    if (kind, dialect) == ("text_encoder", "transformers"):
        return TRANSFORMERS_TEXT
    if (kind, dialect) == ("vae", "diffusers"):
        found = (re.match(r"decoder\.up_blocks\.0\.resnets\.(\d+)\.", key) for key in keys)
        return diffusers_vae(1 + max((int(m[1]) for m in found if m), default=0))
    return None


def rename(names: Collection[str], kind: str, dialect: str) -> dict[str, str]:
    """Released name → name in ``dialect``: the inverse of :func:`resolve`.

    Raises:
        WeightsError: the dialect is unknown for this kind, or has no place for a name.
    """
    if dialect == "released":
        return {name: name for name in names}
    if (kind, dialect) == ("vae", "diffusers"):
        # The first layer that is not a residual block ends the first stage.
        ups = (re.match(r"decoder\.upsamples\.(\d+)\.resample\.", name) for name in names)
        table: Table | None = diffusers_vae(min((int(m[1]) for m in ups if m), default=1))
    else:
        table = _table(kind, dialect, ())
    if table is None:
        raise WeightsError(
            "weights-dialect",
            f"There is no {dialect!r} naming of a {kind}.",
            "Use 'released', 'diffusers' (DiT, VAE) or 'transformers' (text encoder).",
        )
    result = {}
    for name in names:
        other = translate(name, table, back=True)
        if other is None:
            raise WeightsError(
                "weights-dialect",
                f"The {dialect} naming has no place for {name!r}.",
                "Rename a file without SLA projection or int8 weights, or keep these names.",
            )
        result[name] = other
    return result
