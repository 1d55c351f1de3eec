"""Descriptions: cards from shapes, LoRA dialects, variants that are refused, experts."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from tests.weights.helpers import header_of
from turbodiffusion.errors import WeightsError
from turbodiffusion.models.cards import (
    CARDS,
    DIT_1_3B,
    DIT_14B,
    DIT_A14B,
    MICRO_DIT,
    MICRO_TEXT,
    MINI_VAE,
    UMT5_XXL,
    WAN_VAE,
)
from turbodiffusion.weights.check import require_complete, require_config, require_kind
from turbodiffusion.weights.detect import Description, describe, expert_of, warn_if_swapped
from turbodiffusion.weights.header import Header
from turbodiffusion.weights.spec import Spec, TensorSpec, dit_spec, text_spec, vae_spec

ONE = TensorSpec((1,), "bfloat16")


def prefixed(spec: Spec, prefix: str) -> Spec:
    return {prefix + name: tensor for name, tensor in spec.items()}


@pytest.mark.parametrize("sla", [True, False], ids=["sla", "plain"])
@pytest.mark.parametrize("quantized", [True, False], ids=["int8", "bf16"])
@pytest.mark.parametrize("name", CARDS)
def test_every_card_by_its_shapes(name: str, quantized: bool, sla: bool) -> None:
    spec = dit_spec(CARDS[name].dit, quantized, sla)
    found = describe(header_of(spec, "renamed.safetensors"))
    assert found.kind == "dit" and name in found.cards and found.complete
    assert all(CARDS[other].dit == CARDS[name].dit for other in found.cards)
    assert found.quantized == quantized and found.layout == ("int8" if quantized else "bf16")
    assert found.attention == ("sla" if sla else "dense")
    assert found.bytes == sum(t.nbytes for t in spec.values())


def test_vae_and_text_encoder() -> None:
    vae = describe(header_of(vae_spec(WAN_VAE)))
    assert vae.kind == "vae" and vae.complete and vae.layout == "fp32"
    assert vae.cards == tuple(n for n, c in CARDS.items() if c.vae == WAN_VAE)
    text = describe(header_of(text_spec(MICRO_TEXT)))
    assert text.kind == "text_encoder" and text.complete
    assert text.cards == ("micro-teacher", "micro")


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("TurboWan2.1-T2V-14B-720P-quant.pth", "TurboWan2.1-T2V-14B-720P"),
        ("TurboWan2.1-T2V-14B-480P.pth", "TurboWan2.1-T2V-14B-480P"),
        ("rCM_Wan2.1_T2V_14B_720p.pt", "TurboWan2.1-T2V-14B-720P"),
        ("anything.pth", "TurboWan2.1-T2V-14B-480P"),
    ],
)
def test_likeliest_of_two_cards(name: str, first: str) -> None:
    assert describe(header_of(dit_spec(DIT_14B), name)).card == first


def test_metadata_names_the_card() -> None:
    card = "TurboWan2.1-T2V-14B-720P"
    found = describe(header_of(dit_spec(DIT_14B), "T2V-14B-480P.safetensors", card=card))
    assert found.card == card
    lie = describe(header_of(dit_spec(DIT_1_3B), "x.safetensors", card=card))
    assert lie.cards == ("TurboWan2.1-T2V-1.3B-480P",)  # shapes are believed first


@pytest.mark.parametrize(
    ("name", "sla", "said", "first"),
    [
        ("mini_t2v_teacher.safetensors", False, "", "mini-teacher"),
        ("mini_t2v_rcm.safetensors", False, "", "mini"),
        ("mini_t2v_rcm.safetensors", False, "mini", "mini"),
        ("mini_t2v_sla.safetensors", True, "mini-teacher", "mini-teacher"),
        ("renamed.safetensors", True, "", "mini"),
        ("renamed.safetensors", False, "", "mini-teacher"),
        ("renamed.safetensors", False, "mini", "mini"),
    ],
)
def test_student_or_teacher(name: str, sla: bool, said: str, first: str) -> None:
    found = describe(header_of(dit_spec(CARDS["mini"].dit, sla=sla), name, card=said))
    assert found.card == first and set(found.cards) == {"mini", "mini-teacher"}


def test_wrapped_training_export() -> None:
    found = describe(header_of(prefixed(dit_spec(DIT_1_3B, sla=False), "net.")))
    assert found.card == "TurboWan2.1-T2V-1.3B-480P" and found.wrappers == ("net.",)


def test_five_dimensional_patch_embedding_and_fp32() -> None:
    spec = {n: TensorSpec(t.shape, "float32") for n, t in dit_spec(DIT_A14B, sla=False).items()}
    spec["patch_embedding.weight"] = TensorSpec((5120, 36, 1, 2, 2), "float32")
    found = describe(header_of(spec, "high_noise_model/diffusion_pytorch_model.safetensors"))
    assert found.card == "TurboWan2.2-I2V-A14B-720P" and found.complete
    assert (found.layout, found.expert) == ("fp32", "high")


@pytest.mark.parametrize(
    ("path", "expert"),
    [
        ("TurboWan2.2-I2V-A14B-high-720P-quant.pth", "high"),
        ("low_noise_model/model.safetensors", "low"),
        ("wan_LOW.safetensors", "low"),
        ("highlights/slow.pth", "unknown"),
        ("high/low.pth", "low"),
        ("high-low.pth", "unknown"),
        ("x/transformer_2/diffusion_pytorch_model.safetensors", "low"),
    ],
)
def test_expert_from_the_name(path: str, expert: str) -> None:
    assert expert_of(Path(path)) == expert


def test_expert_of_a_single_network_is_empty() -> None:
    assert describe(header_of(dit_spec(DIT_1_3B), "high.pth")).expert == ""
    told = describe(header_of(dit_spec(DIT_A14B), "x.safetensors", expert="low"))
    assert told.expert == "low"


def test_swapped_experts_are_warned_about() -> None:
    with pytest.warns(UserWarning, match="swapped"):
        warn_if_swapped(Path("a-low.pth"), Path("a-high.pth"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_swapped(Path("a-high.pth"), Path("a-low.pth"))
        warn_if_swapped(Path("one.pth"), Path("two.pth"))


LORAS = {
    "comfyui": ["diffusion_model.blocks.0.ffn.0.lora_down.weight", "diffusion_model.x.alpha"],
    "peft": ["diffusion_model.blocks.0.self_attn.q.lora_A.weight"],
    "diffusers-peft": ["transformer.blocks.0.attn1.to_q.lora_A.weight"],
    "kohya": ["lora_unet_blocks_0_self_attn_q.lora_down.weight"],
    "lycoris": ["lycoris_blocks_0_self_attn_q.lokr_w1"],
    "other": ["blocks.0.self_attn.q_lora.up.weight"],
    "diff": ["diffusion_model.blocks.0.modulation.diff_m", "diffusion_model.head.head.diff_b"],
}  # fmt: skip


@pytest.mark.parametrize("dialect", LORAS)
@pytest.mark.parametrize("wanted", ["dit", "vae", "text_encoder"])
def test_a_lora_is_no_model(dialect: str, wanted: str) -> None:
    found = describe(header_of(dict.fromkeys(LORAS[dialect], ONE)))
    assert (found.kind, found.dialect) == ("lora", dialect)
    fails("weights-lora", lambda: require_kind(found, wanted), dialect)


def test_peft_default_adapter_and_second_transformer() -> None:
    key = "transformer_2.blocks.0.attn1.to_q.lora_B.default.weight"
    assert describe(header_of({key: ONE})).dialect == "diffusers-peft"
    key = "blocks.0.self_attn.q.lora_A.default.weight"
    assert describe(header_of({key: ONE})).dialect == "peft"


def fails(code: str, action, *parts: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(WeightsError) as caught:
        action()
    assert caught.value.code == code
    for part in parts:
        assert part in caught.value.message


def micro(**changes: TensorSpec) -> Description:
    return describe(header_of(dit_spec(MICRO_DIT) | changes))


def test_clip_variant_is_refused() -> None:
    spec = dit_spec(DIT_14B, sla=False) | {"img_emb.proj.0.weight": ONE,
                                          "blocks.0.cross_attn.k_img.weight": ONE}  # fmt: skip
    found = describe(header_of(spec))
    assert found.unsupported == "clip"
    fails("weights-clip-variant", lambda: require_kind(found, "dit"), "img_emb")


@pytest.mark.parametrize("change", [
    {"scaled_fp8": TensorSpec((0,), "float8_e4m3fn")},
    {"blocks.0.ffn.0.scale_weight": TensorSpec((), "float32")},
    {"blocks.0.ffn.0.weight": TensorSpec((384, 128), "float8_e5m2")},
])  # fmt: skip
def test_fp8_repackages_are_refused(change: Spec) -> None:
    found = describe(header_of(prefixed(dit_spec(MICRO_DIT) | change, "model.diffusion_model.")))
    assert found.kind == "dit"
    fails("weights-fp8", lambda: require_kind(found, "dit"), "fp8")


def test_fastvideo_names_are_refused() -> None:
    keys = ["patch_embedding.proj.weight", "blocks.0.to_q.weight", "blocks.0.ffn.fc_in.weight"]
    found = describe(header_of(dict.fromkeys(keys, ONE)))
    fails("weights-dialect", lambda: require_kind(found, "dit"), "FastVideo")


@pytest.mark.parametrize(
    ("spec", "wanted", "words"),
    [
        (vae_spec(MINI_VAE), "dit", "a VAE where a diffusion transformer"),
        (dit_spec(MICRO_DIT), "text_encoder", "(DiT) where a text encoder"),
        ({"conv.weight": ONE}, "vae", "no network this package knows"),
    ],
)
def test_another_kind_of_network(spec: Spec, wanted: str, words: str) -> None:
    found = describe(header_of(spec))
    fails("weights-kind", lambda: require_kind(found, wanted), words)


def test_a_text_encoder_of_another_width() -> None:
    found = describe(header_of(text_spec(replace(UMT5_XXL, dim=768, num_heads=12, ffn_dim=2048))))
    fails("weights-text-width", lambda: require_config(found, UMT5_XXL), "dim 768 instead of 4096")


def test_a_network_of_another_card() -> None:
    found = describe(header_of(dit_spec(DIT_1_3B)))
    fails("weights-card", lambda: require_config(found, DIT_14B, "big"), "dim 1536 instead of 5120",
          "of big", "It fits TurboWan2.1-T2V-1.3B-480P")  # fmt: skip
    vae = describe(header_of(vae_spec(MINI_VAE)))
    fails("weights-card", lambda: require_config(vae, WAN_VAE), "z_dim 8 instead of 16")


def test_head_count_is_compared_where_it_shows() -> None:
    other = replace(MICRO_DIT, num_heads=4)
    fails("weights-card", lambda: require_config(micro(), other), "num_heads 2 instead of 4")
    dense = describe(header_of(dit_spec(MICRO_DIT, sla=False)))
    require_config(dense, other)


def test_missing_unexpected_and_mismatched_tensors() -> None:
    spec = dit_spec(MICRO_DIT)
    del spec["blocks.2.ffn.0.bias"]
    found = describe(header_of(spec))
    assert found.missing == ("blocks.2.ffn.0.bias",)
    fails("weights-keys", lambda: require_complete(found), "1 missing (blocks.2.ffn.0.bias)")
    found = micro(**{"blocks.0.extra.weight": ONE})
    fails("weights-keys", lambda: require_complete(found), "1 unexpected (blocks.0.extra.weight)")
    found = micro(**{"blocks.1.norm3.weight": ONE})
    fails("weights-keys", lambda: require_complete(found), "[1] instead of [128]")


def test_a_shard_alone_is_incomplete() -> None:
    spec = dit_spec(DIT_1_3B, sla=False)
    half = dict(list(spec.items())[: len(spec) // 2])
    found = describe(header_of(half))
    assert found.kind == "dit" and found.config is None
    fails("weights-keys", lambda: require_complete(found))


def test_foreign_objects_are_listed() -> None:
    header = header_of(dit_spec(MICRO_DIT))
    header = Header(header.path, "pth", header.tensors, foreign=("argparse.Namespace",))
    assert describe(header).foreign == ("argparse.Namespace",)
